"""Block reconstruction: the rounding and ranges of a module's weights, trained on the module's own inputs and outputs.

The module may be one decoder block (targets: what the block returned before quantization; `loss="mse"`) or a whole
model (targets: its logits; `loss="kl"`). The second costs the memory of one backward pass of the model, and where that
is at hand it is the better one: errors of one layer are made up for by all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from octavo.core.calibration.solvers.learned_rounding import LearnedRounding, RoundedWeight
from octavo.core.errors import CalibrationError, ConfigError, listed
from octavo.core.model.blocks import CapturedCall
from octavo.core.modules import quantized_layers
from octavo.core.quantizers import TensorQuantizer

Loss = Literal["mse", "kl"]


@dataclass(frozen=True)
class ReconstructionOptions:
    """How long and how boldly a module is trained, by steps along the signs of the gradients.

    Attributes:
        iterations: Number of steps; their length falls linearly to 0.
        batch_size: Calls in one step. A call may hold several sequences; batches are drawn without repetition until
            every call was seen.
        reach: How far a value can move before it is rounded, in steps between codes. The learning rate is
            ``2 · reach / iterations`` at first and falls to 0.
        range_reach: The same of the ranges, in parts of themselves; 0 keeps them.
        loss: `mse` between outputs, or `kl` from the softmax of the targets to that of the outputs.
        held: Calls kept out of training, the last ones, that judge start and result.
        checks: How often, evenly spaced, the held calls are looked at; the best look is the result.
        seed: Of the order of the calls.
    """

    iterations: int = 60
    batch_size: int = 1
    reach: float = 0.3
    range_reach: float = 0.03
    loss: Loss = "mse"
    held: int = 2
    checks: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "held", "checks"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"block reconstruction: {name}={value!r}; expected an integer of at least 1"
                )
        for name, least in (("reach", "above 0"), ("range_reach", "of at least 0")):
            value = getattr(self, name)
            is_number = type(value) in (int, float) and math.isfinite(value)
            if not is_number or value < 0 or (value == 0 and least == "above 0"):
                raise ConfigError(f"block reconstruction: {name}={value!r}; expected a finite number {least}")
        if self.loss not in get_args(Loss):
            raise ConfigError(f"block reconstruction: loss={self.loss!r}; expected one of mse, kl")


@dataclass(frozen=True)
class ReconstructionReport:
    """What training did to one module.

    Attributes:
        start: Loss of the start on the held calls.
        held: Loss of the result on the held calls; never above `start`.
        iteration: Step of which the result is; 0 where nothing was better than the start, which is then the result.
        iterations: Steps made.
        looks: (step, loss on the held calls) of every look.
    """

    start: float
    held: float
    iteration: int
    iterations: int
    looks: tuple[tuple[int, float], ...]


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
    options: ReconstructionOptions = ReconstructionOptions(),
    output: Callable[[Any], Tensor] = first_tensor,
) -> Reconstruction:
    """Train the rounding of `starts` so that `module` returns the targets. The module is left as it was.

    Quantizers of inputs and outputs stay on meanwhile, with gradients straight through; those of the trained weights
    step aside.

    Args:
        module: A block, or a model. It runs in its present mode (`eval` for what is meant here).
        starts: Where training starts, by parameter name in `module`. A parameter keeps its place elsewhere.
        calls: Arguments of the module, for example of `BlockSource.captured_calls`.
        targets: What each call shall return, in the form that `output` gives it.
        options: How long and how boldly.
        output: Takes the tensor that is compared out of what the module returns.

    Raises:
        CalibrationError: there are too few calls or not as many targets, a start's name or shape is not one of the
            module, or the start's loss is not finite.
    """
    _check(module, starts, calls, targets, options)
    learned = {name: LearnedRounding(start) for name, start in starts.items()}
    pairs = list(zip(calls, targets, strict=True))
    training, held = pairs[: -options.held], pairs[-options.held :]

    def loss(call: CapturedCall, target: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        found = output(functional_call(module, dict(weights), call.args, call.kwargs))
        return _loss(found, target, options.loss)

    @torch.no_grad()
    def judge() -> float:
        weights = _values(learned, starts)
        return sum(float(loss(call, target, weights)) for call, target in held) / len(held)

    with _weights_as_given(module, starts):
        best = _Best(judge(), {name: weight.result() for name, weight in learned.items()})
        order = _batches(len(training), options)
        for iteration in range(1, options.iterations + 1):
            weights = _values(learned, starts)
            batch = [training[index] for index in next(order)]
            total = torch.stack([loss(call, target, weights) for call, target in batch]).mean()
            total.backward()  # type: ignore[no-untyped-call]
            _descend(learned, options, iteration)
            if _is_look(iteration, options):
                best.offer(iteration, judge(), learned)
    return Reconstruction(best.weights, best.report(options.iterations))


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


def _values(learned: Mapping[str, LearnedRounding], starts: Mapping[str, RoundedWeight]) -> dict[str, Tensor]:
    return {name: weight.value().to(starts[name].weight.dtype) for name, weight in learned.items()}


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
    module: nn.Module,
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
    parameters = dict(module.named_parameters())
    unknown = [name for name in starts if name not in parameters]
    if unknown:
        raise CalibrationError(f"block reconstruction: the module has no parameters {listed(unknown)}")
    for name, start in starts.items():
        if parameters[name].shape != start.weight.shape:
            raise CalibrationError(
                f"block reconstruction: {name} has shape {tuple(parameters[name].shape)}, "
                f"its start {tuple(start.weight.shape)}"
            )
