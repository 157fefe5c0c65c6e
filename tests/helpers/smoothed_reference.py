"""ModelOpt's smoothed checkpoints, and our models with its factors and input maxima, without its searches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import octavo
from helpers.reference import base_model, calibration_ids, folder
from octavo.core.calibration.smoothing_state import smooth
from octavo.core.modules import quantized_layers

SMOOTHED = (
    ("dense", "INT8_SMOOTHQUANT_CFG"),
    ("dense", "INT4_AWQ_CFG"),
    ("dense", "W4A8_AWQ_BETA_CFG"),
    ("tied", "INT8_SMOOTHQUANT_CFG"),
    ("tied", "INT4_AWQ_CFG"),
    ("tied", "W4A8_AWQ_BETA_CFG"),
    ("moe", "INT8_SMOOTHQUANT_CFG"),
)
_READERS_OF_ONE_TENSOR = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def smoothed_model(shared: Path, base: str, preset: str) -> nn.Module:
    """Return the base model, quantized, with the peer's factors and input maxima of one of its checkpoints."""
    state = load_file(folder(shared, base) / preset / "quantizer_state.safetensors")
    config = {**octavo.merge_configs(preset), "algorithm": "max"}
    batches = list(calibration_ids(shared, base).split(1))
    model = octavo.quantize(base_model(shared, base), config, batches, quiet=True)
    layers = dict(quantized_layers(model))
    # The references of both AWQ presets have the same factors.
    source = "INT4_AWQ_CFG" if preset == "W4A8_AWQ_BETA_CFG" else preset
    for name, factor in _factors(shared, base, source).items():
        smooth(name, layers[name], factor, torch.ones_like(factor))
        if (amax := state.get(f"{name}.input_quantizer._amax")) is not None:
            layers[name].input_quantizer.set_state(amax=amax.float())
    return model


@lru_cache(maxsize=1)
def _factors(shared: Path, base: str, preset: str) -> dict[str, Tensor]:
    directory = folder(shared, base) / preset
    state, stored = (load_file(directory / f"{name}.safetensors") for name in ("quantizer_state", "model"))
    found = {}
    for name, layer in base_model(shared, base).named_modules():
        rounded = state.get(f"{name}.input_quantizer._pre_quant_scale")
        if rounded is not None:
            common = torch.stack([state[n] for n in _same_input(name)]).mean(0)
            amax = state.get(f"{name}.weight_quantizer._amax")
            found[name] = exact_factor(layer.weight.detach(), rounded, common, amax.float(), name, stored)
    return found


def _same_input(name: str) -> list[str]:
    parent, _, own = name.rpartition(".")
    group = next((group for group in _READERS_OF_ONE_TENSOR if own in group), (own,))
    return [f"{parent}.{member}.input_quantizer._pre_quant_scale" for member in group]


def exact_factor(
    weight: Tensor, rounded: Tensor, common: Tensor, amax: Tensor, name: str, stored: dict[str, Tensor]
) -> Tensor:
    """Return a factor [in] in fp32 that rounds to `rounded` and gives the stored codes, and maxima before averaging.

    The files have the factor in bf16 only, while the peer divided the weight by the one it was rounded from. One number
    is found for each column, of which every row has a code.
    """
    codes, scale = _codes(stored[f"{name}.weight"]), stored[f"{name}.weight_scale"]
    largest = 127 if scale.dim() == 1 else 7
    block = weight.numel() // scale.numel()
    scale, amax = (t.reshape(len(weight), -1).repeat_interleave(block, 1) for t in (scale, amax))
    best, fewest = rounded.float(), torch.full(rounded.shape, torch.inf)
    for factor in _candidates(rounded, is_smoothquant=largest == 127):
        smoothed = (weight * (1 / factor)).to(weight.dtype).float()
        wrong = _excess(smoothed.abs(), amax)
        if not torch.equal(rounded, common):
            smoothed = (smoothed * rounded.float() / common.float()).to(weight.dtype).float()
        found = (smoothed / scale).round_().clamp_(-largest - 1, largest)
        wrong += (found != codes).sum(0) + _excess(smoothed.abs_() / largest, scale)
        wrong[factor.to(rounded.dtype) != rounded] = torch.inf
        best, fewest = torch.where(wrong < fewest, factor, best), torch.minimum(wrong, fewest)
    return best


def _excess(sizes: Tensor, largest: Tensor) -> Tensor:
    """Return for each column how many sizes exceed the largest; one that equals it counts in favour."""
    return (sizes > largest).sum(0) - 0.1 * (sizes == largest).sum(0)


def _candidates(rounded: Tensor, is_smoothquant: bool) -> Iterator[Tensor]:
    """Yield factors: SmoothQuant's are 1 / a maximum in bf16; those of AWQ may be any number."""
    if is_smoothquant:
        amax = (1 / rounded).view(torch.int16)
        for step in range(-2, 3):
            yield 1 / (amax + step).view(rounded.dtype).float()
        return
    ulp = (rounded.view(torch.int16) + 1).view(rounded.dtype) - rounded
    for part in torch.linspace(-0.5, 0.5, 257):
        yield rounded.float() + part * ulp.float()


def _codes(payload: Tensor) -> Tensor:
    """Return the codes [out, in]: INT8 as they are, INT4 from pairs of rows."""
    if payload.dtype == torch.int8:
        return payload.float()
    nibbles = torch.stack([payload & 15, payload >> 4], 1).flatten(0, 1).float()
    return nibbles - 16 * (nibbles > 7)
