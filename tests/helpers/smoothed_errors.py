"""The output error of single layers of smoothed checkpoints, from their files and the plain model's activations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.reference import base_model, calibration_ids
from oracles.unified_hf import dequantize, quant_algo_of, read_tensors

_NORMS = {"q_proj": "input_layernorm", "k_proj": "input_layernorm", "v_proj": "input_layernorm"}
_NORMS |= {"gate_proj": "post_attention_layernorm", "up_proj": "post_attention_layernorm"}


def layer_of(name: str) -> str:
    """Return the layer that a tensor of a checkpoint belongs to."""
    return name.rpartition(".")[0]


def output_errors(shared: Path, base: str, checkpoint: Path, layers: Sequence[str]) -> dict[str, float]:
    """Return ‖Q(X·f)·Ŵᵀ − X·Wᵀ‖² for layers of a checkpoint, in float64.

    X is what they read in the plain model, W their plain weights, Ŵ what the file's bytes stand for, f the factors on
    the input, which the file holds or the norm before has taken up, and Q the rounding of inputs by the file's scale.
    """
    if not layers:
        return {}
    model = base_model(shared, base)
    arrays = read_tensors(checkpoint)
    tensors = {name: torch.from_numpy(array.astype("float64")) for name, array in arrays.items()}
    inputs = _inputs(model, calibration_ids(shared, base), layers)
    found = {}
    for name in layers:
        x, weight = inputs[name], model.get_submodule(name).get_parameter("weight").detach().double()
        scaled = _rounded(x * _factor(model, tensors, name), tensors.get(f"{name}.input_scale"), checkpoint)
        stored = torch.from_numpy(dequantize(checkpoint, arrays, name)).double()
        found[name] = float((scaled @ stored.T - x @ weight.T).square().sum())
    return found


@torch.no_grad()
def _inputs(model: nn.Module, ids: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name, parts in seen.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, parts=parts: parts.append(args[0].flatten(0, -2).double())
        )
    for batch in ids.split(1):
        model(batch)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def _factor(model: nn.Module, tensors: dict[str, Tensor], name: str) -> Tensor:
    stored = tensors.get(f"{name}.pre_quant_scale")
    if stored is not None:
        return stored
    part, _, own = name.rpartition(".")
    norm = f"{part.rpartition('.')[0]}.{_NORMS[own]}.weight"
    return tensors[norm] / model.get_parameter(norm).detach().double()


def _rounded(x: Tensor, scale: Tensor | None, checkpoint: Path) -> Tensor:
    if scale is None:
        return x
    if quant_algo_of(checkpoint, "") == "W8A8_SQ_PER_CHANNEL":
        return (x / scale).round().clamp(-128, 127) * scale
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).double() * scale
