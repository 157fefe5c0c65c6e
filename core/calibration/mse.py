"""The `mse` algorithm: `max`, then for each weight the amax with the least squared error of rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from octavo.core import ops
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.support import FP8, INT, INT_BLOCKS, MX, NVFP4, NVFP4_STATIC
from octavo.core.errors import CalibrationError, listed
from octavo.core.formats import PerBlock, PerTensor, QuantSpec
from octavo.core.formats.scales import beside
from octavo.core.modules import QuantModule, WeightSlot, quantized_layers
from octavo.core.quantizers import TensorQuantizer
from octavo.core.ranks.gathered import gathered

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration


class Mse(Algorithm):
    """Which values of amax are tried; names and defaults are those of ModelOpt's `MseCalibConfig`.

    Each block, channel or tensor that has a scale of its own is searched alone. Weights whose amax is not their
    largest magnitude (constant, loaded or searched before) and those that several quantizers round in turn keep theirs.

    Attributes:
        step_size: Distance of the multiples of the largest magnitude that are tried, about: their number is
            ⌈(stop − start) / step⌉ + 1, evenly spaced.
        start_multiplier: The smallest multiple.
        stop_multiplier: The largest multiple.
        fp8_scale_sweep: Try all 126 positive E4M3 block scales instead, on weights with calibrated two-level
            scales (static NVFP4); other weights keep their largest magnitude.
    """

    method: ClassVar[str] = "mse"
    solves: ClassVar[frozenset[str]] = frozenset({INT, INT_BLOCKS, FP8, NVFP4_STATIC})
    leaves: ClassVar[frozenset[str]] = frozenset({NVFP4, MX})
    gathers_weights: ClassVar[bool] = True
    step_size: float = Field(default=0.1, gt=0, allow_inf_nan=False, strict=True)
    start_multiplier: float = Field(default=0.25, gt=0, allow_inf_nan=False, strict=True)
    stop_multiplier: float = Field(default=4.0, gt=0, allow_inf_nan=False, strict=True)
    fp8_scale_sweep: StrictBool = False

    @model_validator(mode="after")
    def _ordered(self) -> Mse:
        if self.stop_multiplier < self.start_multiplier:
            raise PydanticCustomError(
                "order",
                "stop_multiplier={stop} is below start_multiplier={start}; exchange them",
                {"stop": self.stop_multiplier, "start": self.start_multiplier},
            )
        return self

    def multipliers(self, device: torch.device) -> Tensor:
        """Return the multiples of the largest magnitude, fp32."""
        steps = math.ceil((self.stop_multiplier - self.start_multiplier) / self.step_size) + 1
        return torch.linspace(self.start_multiplier, self.stop_multiplier, steps, device=device)

    def run(self, calibration: Calibration) -> None:
        """Search the amax of every weight that still has its largest magnitude.

        Raises:
            CalibrationError: a weight is offloaded, so that it cannot be searched; it is named.
        """
        calibration.share_second_levels()
        searchable = [found for found in _weights(calibration.model) if _has_scales(found[3], self)]
        offloaded = [
            f"{name}.{slot.quantizer}"
            for name, layer, slot, _ in searchable
            if layer.quantized_weights()[slot.quantizer].is_meta
        ]
        if offloaded:
            raise CalibrationError(
                f"the search of 'mse' needs weights in memory, and {len(offloaded)} are offloaded: "
                f"{listed(offloaded)}; load the model without offloading, or use the algorithm 'max'"
            )
        for name, layer, slot, quantizer in searchable:
            with gathered(layer, [slot.parameter]):
                weight = layer.quantized_weights()[slot.quantizer].detach()
                if not _has_largest(quantizer, weight):
                    continue
                largest, amax = quantizer.amax.clone(), best_amax(weight, quantizer, self)
            quantizer.set_state(**{**quantizer.named_state(), "amax": amax})
            note = {"weight": f"{name}.{slot.parameter}".removeprefix("."), "algorithm": self.method}
            calibration.rows.append({**note, "mean_multiplier": _mean_ratio(amax, largest)})


@torch.no_grad()
def best_amax(weight: Tensor, quantizer: TensorQuantizer, options: Mse) -> Tensor:
    """Return, fp32 in the shape of `quantizer.amax`, the candidates with the least error (ties: the first)."""
    spec = quantizer.spec
    assert spec is not None  # noqa: S101 (the caller leaves the others out)
    state = quantizer.named_state()
    x = weight.float()
    best = state["amax"]
    least = torch.full_like(best, torch.inf)
    # As in ModelOpt, whose amax has the weight's dtype (fp32 for blocks): that of a tensor is rounded after the search,
    # those of channels before.
    granularity = spec.unstacked().granularity
    dtype = torch.float32 if isinstance(granularity, PerBlock) else weight.dtype
    for candidate in _candidates(state, options):
        amax = candidate if isinstance(granularity, PerTensor) else candidate.to(dtype).float()
        rounded = ops.fake_quantize(x, list({**state, "amax": amax}.values()), spec.key)
        error = _sum_by_scale((x - rounded).square(), spec)
        best = torch.where(error < least, amax, best)
        least = torch.minimum(error, least)
    return best.to(dtype).float()


def _candidates(state: dict[str, Tensor], options: Mse) -> Iterator[Tensor]:
    amax = state["amax"]
    if options.fp8_scale_sweep:
        codes = torch.arange(1, 127, dtype=torch.uint8, device=amax.device)  # all positive finite E4M3 codes
        for scale in codes.view(torch.float8_e4m3fn).float() / 448:
            yield (beside(state["global_amax"], amax) * scale).expand_as(amax)
    else:
        for multiplier in options.multipliers(amax.device):
            yield amax * multiplier


def _sum_by_scale(error: Tensor, spec: QuantSpec) -> Tensor:
    blocked = spec.granularity.blocked(error)
    dims = spec.granularity.reduced_dims(error.dim())
    return (blocked.sum(dims) if dims else blocked).reshape(spec.granularity.scale_shape(error.shape))


def _mean_ratio(amax: Tensor, largest: Tensor) -> float:
    return float((amax / largest)[largest > 0].mean()) if bool((largest > 0).any()) else 1.0


def _weights(model: nn.Module) -> Iterator[tuple[str, QuantModule, WeightSlot, TensorQuantizer]]:
    """Yield (layer's name, layer, slot, quantizer) of every weight with a single quantizer that is on."""
    for name, layer in quantized_layers(model):
        for slot in layer.weight_slots():
            quantizer = layer.quantizers()[slot.quantizer]
            if isinstance(quantizer, TensorQuantizer) and quantizer.enabled:
                yield name, layer, slot, quantizer


def _has_scales(quantizer: TensorQuantizer, options: Mse) -> bool:
    spec = quantizer.spec
    return (
        spec is not None
        and "amax" in spec.state
        and not (options.fp8_scale_sweep and spec.global_max is None)
    )


def _has_largest(quantizer: TensorQuantizer, weight: Tensor) -> bool:
    """Return whether a quantizer's amax is still the largest magnitude of its weight."""
    assert quantizer.spec is not None  # noqa: S101 (it has scales)
    return torch.equal(quantizer.amax, ops.amax(weight, quantizer.spec))
