"""What DDP, FSDP2 and ZeRO-3 have to see, or cannot do, when a model trains with quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import nn

from octavo.core.calibration.learned_scales import learned_quantizers
from octavo.core.errors import TrainingError
from octavo.core.model.sharded import is_dtensor, is_replicated, is_zero
from octavo.core.quantizers.learned_amax import Estimator


def check_wrapping(model: nn.Module, scales: Mapping[str, str]) -> None:
    """Refuse to add parameters to a model whose wrapper has listed them: ranks would train them apart.

    Args:
        model: The model.
        scales: What becomes of scales, by the argument's name.

    Raises:
        TrainingError: scales are to be learned, and FSDP2, DDP or ZeRO-3 has wrapped the model.
    """
    learned = [f"{name}={way!r}" for name, way in scales.items() if way in get_args(Estimator)]
    if not learned:
        return
    _check_not_zero(model, learned[0])
    divided = [name for name, parameter in model.named_parameters() if is_dtensor(parameter)]
    if divided or is_replicated(model):
        wrapper = f"FSDP2 (first {divided[0]!r})" if divided else "DistributedDataParallel"
        raise TrainingError(
            f"{learned[0]} makes scales parameters, and {wrapper} has wrapped the model already, so that their "
            "gradients would stay apart on each rank; make QuantizedTraining first, then wrap the model"
        )


def check_wrapped(model: nn.Module) -> None:
    """Refuse to begin under a wrapper that came since, and with which quantizers do not work.

    Raises:
        TrainingError: scales are learned under ZeRO-3, or the model is under FSDP's first version.
    """
    flattened = [name for name, one in model.named_parameters() if getattr(one, "_fsdp_flattened", False)]
    if flattened:
        raise TrainingError(
            f"{flattened[0]!r} is a part of what FullyShardedDataParallel, FSDP's first version, has flattened, and "
            "rows of weights cannot be told; use fully_shard (in the Trainer fsdp_config={'version': 2})"
        )
    if any(True for _ in learned_quantizers(model)):
        _check_not_zero(model, "learning scales")


def check_sees_parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that has none of the parameters that FSDP2 keeps.

    Raises:
        TrainingError: there are such parameters, and it has none of them.
    """
    divided = {id(parameter) for parameter in model.parameters() if is_dtensor(parameter)}
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if divided and not divided & known:
        raise TrainingError(
            f"the optimizer has none of the {len(divided)} parameters that fully_shard divided: it was made before, "
            "and would train nothing. Make it after"
        )


def _check_not_zero(model: nn.Module, doing: str) -> None:
    zero = [name for name, parameter in model.named_parameters() if is_zero(parameter)]
    if zero:
        # Its hooks gather a parameter for the module that has it; scales are read by the layer around their quantizer.
        raise TrainingError(
            f"{doing}: ZeRO-3 holds this model (first {zero[0]!r}), and does not gather scales that are parameters; "
            "use 'held' or 'recomputed' scales of weights and 'held' or 'observed' ones of activations, or FSDP2"
        )
