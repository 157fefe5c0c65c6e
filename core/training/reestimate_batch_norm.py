"""`reestimate_batch_norm`: running statistics of batch normalization, taken anew from a model that rounds.

As in Nagel et al., "Overcoming oscillations in quantization-aware training", arXiv:2203.11086, section 5.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from octavo.core.calibration.forward_loop import ForwardLoop, run_forward_loop
from octavo.core.errors import CalibrationError, ModeError, listed

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def reestimate_batch_norm(model: nn.Module, forward_loop: ForwardLoop, quiet: bool = False) -> int:
    """Replace the running statistics of every batch normalization by the mean of those of some batches, in place.

    Rounding moves the means and variances that layers make, and running averages lag behind weights that are trained:
    the network is run as it is now, with its quantizers on, and everything but these norms in evaluation mode. Before
    `fold_batch_norm`.

    Args:
        model: In any mode; the modes of its modules stay.
        forward_loop: Data, as in `octavo.quantize`; every batch counts alike, whatever its size.
        quiet: Show no progress bar.

    Returns:
        How many norms have new statistics.

    Raises:
        ModeError: the model has no batch normalization with running statistics (folded ones have none).
        CalibrationError: the data never reached a norm, or made its statistics NaN or infinite; it is named. The
            statistics are those from before then.
        ConfigError: as in `octavo.quantize`.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    }
    if not norms:
        raise ModeError(
            "the model has no batch normalization with running statistics; what is folded already has none"
        )
    with _replacing(norms):
        handles = [norm.register_forward_pre_hook(_estimate) for norm in norms.values()]
        try:
            run_forward_loop(model, forward_loop, quiet)
        finally:
            for handle in handles:
                handle.remove()
        _check(norms)
    return len(norms)


@contextmanager
def _replacing(norms: Mapping[str, Any]) -> Iterator[None]:
    """Begin statistics anew, as plain averages; put the old ones back where something fails."""
    before = {
        norm: (norm.momentum, {name: getattr(norm, name).clone() for name in _STATISTICS})
        for norm in norms.values()
    }
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
    is_done = False
    try:
        yield
        is_done = True
    finally:
        for norm, (momentum, old) in before.items():
            norm.momentum = momentum
            for name in _STATISTICS[2:] if is_done else _STATISTICS:
                getattr(norm, name).copy_(old[name])


def _estimate(norm: nn.Module, args: Any) -> None:
    norm.train()


def _check(norms: Mapping[str, Any]) -> None:
    unseen = [name for name, norm in norms.items() if not int(norm.num_batches_tracked)]
    if unseen:
        raise CalibrationError(
            f"the data never reached {len(unseen)} batch norms: {listed(unseen)}; give data that runs these layers"
        )
    bad = [name for name, norm in norms.items() if not _is_finite(norm.running_mean, norm.running_var)]
    if bad:
        raise CalibrationError(
            f"the statistics of {len(bad)} batch norms are not finite: {listed(bad)}; look at the data, and at the "
            "layers before"
        )


def _is_finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
