"""Block reconstruction: the rounding and ranges of a module's weights, trained on the module's own inputs and outputs.

The module may be one decoder block (targets: what the block returned before quantization, `loss="mse"`; inputs: what
the quantized blocks before it return), or all that lies between some block's input and the logits, up to the whole
model (targets: logits, `loss="kl"`). The last block is best trained through the head, by `kl`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from octavo.core.calibration.reconstruction_options import (
    Loss,
    ReconstructionOptions,
    ReconstructionReport,
)
from octavo.core.calibration.shared_inputs import shared_inputs
from octavo.core.calibration.solvers.learned_rounding import LearnedRounding, RoundedWeight
from octavo.core.errors import CalibrationError, listed
from octavo.core.model.blocks import CapturedCall
from octavo.core.modules import quantized_layers
from octavo.core.quantizers import TensorQuantizer

DEFAULTS = ReconstructionOptions()


@dataclass(frozen=True)
class Reconstruction:
    """The trained weights by parameter name, on the grids of their states, and the report."""

    weights: dict[str, RoundedWeight]
    report: ReconstructionReport


def first_tensor(output: Any) -> Tensor:
    """Return a module's output, or its first part where it returns several."""
    return output if isinstance(output, Tensor) else first_tensor(output[0])


def reconstruct(
    module: nn.Module,
    starts: Mapping[str, RoundedWeight],
    calls: Sequence[CapturedCall],
    targets: Sequence[Tensor],
    options: ReconstructionOptions = DEFAULTS,
    output: Callable[[Any], Tensor] = first_tensor,
) -> Reconstruction:
    """Train the rounding of `starts` so that `module` returns the targets. The module is left as it was.

    Quantizers of inputs and outputs stay on meanwhile, with gradients straight through; those of the trained weights
    step aside.

    Args:
        module: A block, or a model. It runs in its present mode (`eval` for what is meant here).
        starts: Where training starts, by parameter name in `module`. A parameter keeps its place elsewhere.
        calls: Arguments of the module, for example of `BlockSource.captured_calls`; they are asked for when they are
            run, and so are targets.
        targets: What each call shall return, in the form that `output` gives it.
        options: How long and how boldly.
        output: Takes the tensor that is compared out of what the module returns.

    Raises:
        CalibrationError: there are too few calls or not as many targets, a start's name or shape is not one of the
            module, or the start's loss is not finite.
    """
    parameters, turned = dict(module.named_parameters()), _transposed(module)
    _check(parameters, turned, starts, calls, targets, options)
    learned = {name: LearnedRounding(start) for name, start in starts.items()}
    num_training = len(calls) - options.held

    def values() -> dict[str, Tensor]:
        return {
            name: (weight.value().T if name in turned else weight.value()).to(parameters[name].dtype)
            for name, weight in learned.items()
        }

    def loss(index: int, weights: Mapping[str, Tensor]) -> Tensor:
        call = calls[index]
        args, kwargs = (
            [_kept(value) for value in call.args],
            {name: _kept(v) for name, v in call.kwargs.items()},
        )
        found = output(functional_call(module, dict(weights), tuple(args), kwargs))
        return _loss(found, targets[index], options.loss)

    @torch.no_grad()
    def judge() -> float:
        weights = values()
        return sum(float(loss(index, weights)) for index in range(num_training, len(calls))) / options.held

    with _weights_as_given(module, starts), shared_inputs(module), torch.enable_grad():
        best = _Best(judge(), {name: weight.result() for name, weight in learned.items()})
        order = _batches(num_training, options)
        for iteration in range(1, options.iterations + 1):
            weights = values()
            total = torch.stack([loss(index, weights) for index in next(order)]).mean()
            total.backward()  # type: ignore[no-untyped-call]
            _descend(learned, options, iteration)
            if _is_look(iteration, options):
                best.offer(iteration, judge(), learned)
    return Reconstruction(best.weights, best.report(options.iterations))


def _kept(value: Any) -> Any:
    """Return an argument as it was captured: a block fills the cache that it is given."""
    if isinstance(value, tuple) and all(isinstance(part, Tensor) for part in value):
        return value
    return value if isinstance(value, Tensor) else copy.deepcopy(value)


class _Best:
    """The best iterate so far."""

    def __init__(self, start: float, weights: dict[str, RoundedWeight]) -> None:
        if not math.isfinite(start):
            raise CalibrationError(
                f"block reconstruction: the loss of the start on the held calls is {start}; look for NaN or infinity "
                "in the captured inputs, the targets and the start's scales"
            )
        self._start, self._least, self._iteration = start, start, 0
        self._looks: list[tuple[int, float]] = []
        self.weights = weights

    def offer(self, iteration: int, loss: float, learned: Mapping[str, LearnedRounding]) -> None:
        self._looks.append((iteration, loss))
        if loss < self._least:
            self._least, self._iteration = loss, iteration
            self.weights = {name: weight.result() for name, weight in learned.items()}

    def report(self, iterations: int) -> ReconstructionReport:
        return ReconstructionReport(self._start, self._least, self._iteration, iterations, tuple(self._looks))


def _loss(output: Tensor, target: Tensor, loss: Loss) -> Tensor:
    output, target = output.float(), target.float()
    if loss == "mse":
        return nn.functional.mse_loss(output, target)
    rows = output.shape[-1]
    inputs, targets = (x.log_softmax(-1).reshape(-1, rows) for x in (output, target))
    return nn.functional.kl_div(inputs, targets, reduction="batchmean", log_target=True)


def _transposed(module: nn.Module) -> set[str]:
    """Return the names of parameters that layers hold as [in, out]."""
    return {
        f"{name}.{slot.parameter}".removeprefix(".")
        for name, layer in quantized_layers(module)
        if layer.weight_is_transposed
        for slot in layer.weight_slots()
    }


def _batches(num_calls: int, options: ReconstructionOptions) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(options.seed)
    size = min(options.batch_size, num_calls)
    while True:
        order = torch.randperm(num_calls, generator=generator).tolist()
        yield from (order[i : i + size] for i in range(0, num_calls - size + 1, size))


@torch.no_grad()
def _descend(learned: Mapping[str, LearnedRounding], options: ReconstructionOptions, iteration: int) -> None:
    rate = 2 / options.iterations * (1 - (iteration - 1) / options.iterations)
    for weight in learned.values():
        for leaf, reach in ((weight.codes, options.reach), (weight.ranges, options.range_reach)):
            if leaf is not None and leaf.grad is not None:
                leaf.sub_(leaf.grad.sign(), alpha=reach * rate)
                leaf.grad = None


def _is_look(iteration: int, options: ReconstructionOptions) -> bool:
    """Whether a share of the steps, one of `checks`, ends with this one."""
    done, before = (steps * options.checks // options.iterations for steps in (iteration, iteration - 1))
    return done > before


@contextmanager
def _weights_as_given(module: nn.Module, names: Mapping[str, Any]) -> Iterator[None]:
    """Switch the quantizers of the named parameters off, and no gradient for any parameter, for a while."""
    off: list[TensorQuantizer] = []
    for layer_name, layer in quantized_layers(module):
        prefix = f"{layer_name}." if layer_name else ""
        owned = {f"{prefix}{name}" for name, _ in layer.named_parameters(recurse=False)}
        if owned & names.keys():
            stages = [
                stage for name in layer.quantized_weights() for stage in layer.quantizers()[name].stages()
            ]
            off += [stage for stage in stages if stage.enabled]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for quantizer in off:
            quantizer.enabled = False
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for quantizer in off:
            quantizer.enabled = True
        for parameter in trained:
            parameter.requires_grad_(True)


def _check(
    parameters: Mapping[str, Tensor],
    turned: Collection[str],
    starts: Mapping[str, RoundedWeight],
    calls: Sequence[CapturedCall],
    targets: Sequence[Tensor],
    options: ReconstructionOptions,
) -> None:
    if len(calls) != len(targets):
        raise CalibrationError(
            f"block reconstruction: {len(calls)} calls and {len(targets)} targets; expected one each"
        )
    if len(calls) <= options.held:
        raise CalibrationError(
            f"block reconstruction: {len(calls)} captured calls, of which held={options.held} judge the result; "
            "expected at least one more to train on"
        )
    unknown = [name for name in starts if name not in parameters]
    if unknown:
        raise CalibrationError(f"block reconstruction: the module has no parameters {listed(unknown)}")
    for name, start in starts.items():
        shape = start.weight.shape[::-1] if name in turned else start.weight.shape
        if parameters[name].shape != shape:
            raise CalibrationError(
                f"block reconstruction: {name} has shape {tuple(parameters[name].shape)}, "
                f"its start {tuple(shape)}"
            )
