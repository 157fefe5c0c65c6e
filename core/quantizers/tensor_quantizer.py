"""TensorQuantizer: the module that holds one tensor's format and calibrated state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from octavo.core import ops
from octavo.core.errors import ModeError
from octavo.core.formats import QuantSpec
from octavo.core.formats.hadamard import hadamard_block
from octavo.core.quantizers.bias import Bias
from octavo.core.quantizers.calibrator import MAX, Calibrator
from octavo.core.quantizers.learned_amax import Estimator, Learning, clipped, shifted
from octavo.core.quantizers.rotation import Rotation


class Collector(Protocol):
    """What a quantizer hands every tensor it sees to, while one is attached."""

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Look at `x`, which `quantizer` is about to pass on."""


class TensorQuantizer(nn.Module):
    """Quantize one tensor in simulation: values are rounded, their dtype stays.

    State is plain buffers, so that every checkpoint route carries it: one for each name in `spec.state`
    (`amax`, `global_amax`; fp32, their final shape from the start, NaN until calibrated so that using them too
    early is loud) and `calibrated` (uint8 [], 0 or 1). `.to(dtype)` moves them and never changes their dtype.
    Behaviour depends on Python attributes alone, never on tensor values.

    Attributes:
        spec: The format, or None for a quantizer that passes tensors through.
        enabled: False passes tensors through and keeps the state.
        range_mask: Stop gradients where a value saturates.
        calibrator: How calibration chooses `amax`.
        bias: What is subtracted before rounding and added again after, or None.
        is_absorbed: The tensor holds rounded values, or their codes: this one says in which format, has no state, and
            passes tensors through.
        rotation: How the tensor is rotated before rounding, also while the quantizer is off; or None.
        collector: While set, sees every tensor and nothing is rounded (calibration).
        observer: While set, sees every tensor, and rounding goes on (training).
        pre_quant_scale: fp32 factor of each channel of the last dim, applied to the tensor first, before the collector
            sees it; None when no algorithm made one.
        low_rank_down: fp32 [rank, in] on a linear layer's weight quantizer: with `low_rank_up`, the layer adds
            ``(x · downᵀ) · upᵀ`` of its input times `pre_quant_scale` to its output; None when no algorithm made one.
        low_rank_up: fp32 [out, rank].
        bias_value: fp32, the static `bias`, broadcast to the tensor; None until calibrated.
        amax_shift: The fp32 parameter by which training changes `amax`, while `learn_amax` lets it; None otherwise.
        learning: How; None where nothing is learned, or learning pauses.
    """

    spec: QuantSpec | None
    amax: Tensor
    global_amax: Tensor
    calibrated: Tensor
    pre_quant_scale: Tensor | None
    low_rank_down: Tensor | None
    low_rank_up: Tensor | None
    bias_value: Tensor | None
    amax_shift: nn.Parameter | None

    def __init__(
        self,
        spec: QuantSpec | None = None,
        shape: Sequence[int] = (),
        device: torch.device | None = None,
        range_mask: bool = True,
        calibrator: Calibrator = MAX,
        bias: Bias | None = None,
    ) -> None:
        super().__init__()
        self.enabled = spec is not None
        self.range_mask = range_mask
        self.calibrator = calibrator
        self.bias = bias
        self.is_absorbed = False
        self.rotation: Rotation | None = None
        self.collector: Collector | None = None
        self.observer: Collector | None = None
        for name in ("pre_quant_scale", "low_rank_down", "low_rank_up", "bias_value"):
            self.register_buffer(name, None)
        self.register_parameter("amax_shift", None)
        self.learning: Learning | None = None
        self._range_mask_before = range_mask
        self._num_elements = math.prod(length for length in shape if length)  # 0 stands for dims that vary
        self.spec = spec
        self._key = ops.NOTHING if spec is None else spec.key
        if spec is not None and spec.state:
            for name in spec.state:
                state_shape = spec.state_shape(name, shape)
                values = torch.full(state_shape, torch.nan, device=device, dtype=torch.float32)
                self.register_buffer(name, values)
            self.register_buffer("calibrated", torch.zeros((), dtype=torch.uint8, device=device))

    def respecify(self, spec: QuantSpec) -> None:
        """Change the format to one that needs the same state (finalizing does, and undoes it).

        Raises:
            ModeError: the new format needs other state, or scales of other parts of the tensor.
        """
        if spec.state != self._state_names:
            raise ModeError(
                f"cannot change {self.spec} to {spec}: its state is {spec.state}, found {self._state_names}"
            )
        if self.spec is not None and "amax" in spec.state and spec.granularity != self.spec.granularity:
            raise ModeError(
                f"cannot change {self.spec} to {spec}: an amax for each part of the one is none for the parts of "
                "the other; quantize again with the other format"
            )
        self.spec = spec
        self._key = spec.key

    def make_static(self, **state: Tensor) -> None:
        """Change a format with scales of the values at hand to the one with these scales.

        Args:
            state: Its calibrated tensors by name: `amax` and, with two levels, `global_amax`.

        Raises:
            ModeError: the format has no scales to fix, or the state is not that of the static format.
        """
        if self.spec is None or not self.spec.dynamic:
            raise ModeError(f"only dynamic scales can be made static, found {self.spec}")
        dynamic, static = self.spec, replace(self.spec, dynamic=False)
        if state.keys() != set(static.state):
            raise ModeError(f"{static} has state {sorted(static.state)}, found {sorted(state)}")
        device = next(iter(state.values())).device
        for name in static.state:
            self.register_buffer(name, torch.full_like(state[name], torch.nan, dtype=torch.float32))
        if not dynamic.state:
            self.register_buffer("calibrated", torch.zeros((), dtype=torch.uint8, device=device))
        self.spec = static
        self._key = static.key
        self.set_state(**state)

    def absorb(self) -> None:
        """Give state and factor up, which the tensor's values or codes contain from now on; the format stays known."""
        for name in (*self._state_names, "calibrated"):
            self._buffers.pop(name, None)
        self.is_absorbed, self.pre_quant_scale = True, None

    def learn_amax(self, estimator: Estimator) -> None:
        """Let training change `amax`, from where it is: `amax_shift` becomes a parameter, for the optimizer to find.

        Args:
            estimator: `lsq`: every value has a say. `pact`: those that are clipped do; one scale per tensor.

        Raises:
            ConfigError: the format has no scales that `estimator` could learn.
        """
        num_scales = self.amax.numel() if "amax" in self._state_names else 1
        self.learning = Learning.of(self.spec, estimator, self._num_elements / max(num_scales, 1))
        shape = self.amax.shape or (1,)  # frameworks that shard parameters need a dim
        self.amax_shift = nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=self.amax.device))
        self._range_mask_before = self.range_mask
        if estimator == "pact":
            self.range_mask = False  # clipping stops the gradient, at the very values whose own it takes

    @torch.no_grad()
    def fix_amax(self, learned: Tensor | None = None) -> None:
        """Make the buffer `amax` what training has made of it, and learn no more; without `learn_amax`, do nothing.

        Args:
            learned: `named_state()["amax"]`, where `amax_shift` is not here as a whole any more.
        """
        if self.amax_shift is not None:
            self.amax.copy_(self.named_state()["amax"] if learned is None else learned)
            self.amax_shift, self.learning = None, None
            self.range_mask = self._range_mask_before

    def scaled(self, x: Tensor) -> Tensor:
        """Return `x` times `pre_quant_scale`, rounded once to the dtype of `x`."""
        return x if self.pre_quant_scale is None else (x * self.pre_quant_scale).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded to the format, or as it is while disabled or collecting; rotated in any case."""
        if self.rotation is not None and self._only_rounds:
            x = self._rotated_and_rounded(self.scaled(x), self.rotation)
            return self.rotation.apply(x) if self.rotation.back else x
        x = self.observe(x)
        if self.is_active:
            x = self._rounded(x) if self.bias is None else self._rounded_around(x, self.bias)
        return self.rotation.apply(x) if self.rotation is not None and self.rotation.back else x

    def observe(self, x: Tensor) -> Tensor:
        """Apply `pre_quant_scale` and `rotation` and show the tensor to the collector, without rounding."""
        x = self.scaled(x)
        if self.rotation is not None:
            x = self.rotation.apply(x)
        if self.collector is not None:
            self.collector.collect(self, x)
        if self.observer is not None:
            self.observer.collect(self, x)
        if self._clips and self.is_active and self.learning is not None:
            x = clipped(x, self.named_state()["amax"], self.learning.lowest)
        return x

    def _rounded(self, x: Tensor) -> Tensor:
        return ops.operand(x, self.active_state(), self.active_key, self.range_mask)

    def _rounded_around(self, x: Tensor, bias: Bias) -> Tensor:
        value = self._bias_of(x, bias)
        return self._rounded(x - value) + value

    def _rotated_and_rounded(self, x: Tensor, rotation: Rotation) -> Tensor:
        block = hadamard_block(x.shape[-1], rotation.block_size)
        return ops.rotated_fake_quantize(x, block, self.active_state(), self.active_key, self.range_mask)

    def _bias_of(self, x: Tensor, bias: Bias) -> Tensor:
        if bias.dynamic:
            return bias.of(x)
        if self.bias_value is None:
            raise ModeError(
                f"the {bias} of this quantizer was never calibrated; call octavo.calibrate with data first"
            )
        return self.bias_value.to(x.dtype)

    @property
    def is_active(self) -> bool:
        """Whether `forward` rounds."""
        return self.enabled and self.spec is not None and self.collector is None and not self.is_absorbed

    @property
    def is_idle(self) -> bool:
        """Whether `forward` hands tensors on as they are and shows them to nobody."""
        is_watched = self.collector is not None or self.observer is not None
        is_scaling = (
            self._buffers["pre_quant_scale"] is not None
        )  # found faster than the attribute: for every token
        return not (is_watched or is_scaling or self.is_active or self.rotation is not None)

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """`low_rank_down` and `low_rank_up`, or None."""
        down, up = self._buffers["low_rank_down"], self._buffers["low_rank_up"]
        return None if down is None or up is None else (down, up)

    @property
    def _only_rounds(self) -> bool:
        """Whether nothing looks at or changes the tensor between its rotation and its rounding."""
        return self.is_active and self.bias is None and self.observer is None and self.learning is None

    @property
    def active_key(self) -> str:
        """The chain of specs that `forward` applies, for the ops; empty when it does not round."""
        return self._key if self.is_active else ops.NOTHING

    def named_state(self) -> dict[str, Tensor]:
        """Return the calibrated tensors by name, as `set_state` takes them; learned ones with their gradient."""
        state = self._buffered_state()
        if self.amax_shift is not None and self.learning is not None:
            state["amax"] = shifted(self.amax, self.amax_shift, self.learning.factor)
        return state

    def _buffered_state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._state_names}

    def state_tensors(self) -> list[Tensor]:
        """Return the calibrated tensors in the order that the ops take them."""
        return list(self.named_state().values())

    def active_state(self) -> list[Tensor]:
        """Return `state_tensors()`, or nothing when `forward` does not round."""
        if not self.is_active:
            return []
        state = self.state_tensors()
        return [tensor.detach() for tensor in state] if self._clips else state

    @property
    def _clips(self) -> bool:
        """Whether clipping, and not rounding, has the gradient of the range."""
        return self.learning is not None and self.learning.estimator == "pact"

    @property
    def has_static_bias(self) -> bool:
        """Whether calibration finds a bias."""
        return self.bias is not None and not self.bias.dynamic

    @property
    def needs_calibration(self) -> bool:
        """Whether there is state that was never set. Reads a tensor: not for use inside forward."""
        if self.has_static_bias and self.bias_value is None:
            return True
        return bool(self._state_names) and not bool(self.calibrated)

    @torch.no_grad()
    def set_state(self, **tensors: Tensor) -> None:
        """Set calibrated tensors by name and mark the quantizer as calibrated; learning goes on from there.

        Raises:
            ModeError: a name is not part of this format's state, one is missing, or a shape differs; nothing is set.
        """
        buffers = self._buffered_state()
        if tensors.keys() != buffers.keys():
            raise ModeError(f"{self.spec} has state {sorted(buffers)}, found {sorted(tensors)}")
        for name, buffer in buffers.items():
            found = tuple(tensors[name].shape)
            if buffer.shape != found:
                raise ModeError(f"{name} of {self.spec} has shape {tuple(buffer.shape)}, found {found}")
        for name, buffer in buffers.items():
            buffer.copy_(tensors[name])
        if buffers:
            self.calibrated.fill_(1)
        if self.amax_shift is not None:
            self.amax_shift.zero_()

    def stages(self) -> list[TensorQuantizer]:
        """Return the quantizers that run in turn: just this one."""
        return [self]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TensorQuantizer:
        before = dict(self._buffers)
        shift = None if self.amax_shift is None else self.amax_shift.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.amax_shift is not None and shift is not None and self.amax_shift.dtype != shift.dtype:
            self.amax_shift.data = shift.to(self.amax_shift.device)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        dtypes = {name: buffer.dtype for name, buffer in self._buffers.items() if buffer is not None}
        super()._load_from_state_dict(*args, **kwargs)
        for name, dtype in dtypes.items():  # load_state_dict(assign=True) puts in tensors of any dtype
            self._buffers[name] = getattr(self, name).to(dtype)

    @property
    def _state_names(self) -> tuple[str, ...]:
        return () if self.spec is None or self.is_absorbed else self.spec.state

    def extra_repr(self) -> str:
        """Describe format and state for `print(model)`."""
        transforms = [str(one) for one in (self.rotation, self.bias) if one is not None]
        return ", ".join([*self._shown_state(), *transforms])

    def _shown_state(self) -> list[str]:
        if self.spec is None or not self.enabled:
            return ["off"]
        if self.is_absorbed:
            return [str(self.spec), "absorbed"]
        calibrated = self._buffers.get("calibrated")
        if calibrated is None or calibrated.is_meta:
            return [str(self.spec)]
        if not calibrated:
            return [str(self.spec), "not calibrated"]
        shown = [
            f"{name}={value.item():.4g}" if value.dim() == 0 else f"{name}={list(value.shape)}"
            for name, value in self.named_state().items()
        ]
        return [str(self.spec), *shown]
