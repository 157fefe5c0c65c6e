"""A quantized checkpoint as the model that it stands for, on any device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.layer_records import attach_described, describe_quantizers
from octavo.core.errors import CheckpointError, listed
from octavo.core.model.checkpoint_layout import Place
from octavo.core.model.expert_layout import layout_in_files
from octavo.core.model.exporter import Exporter, InputState, OwnConfigExporter, QuantizedCheckpoint
from octavo.core.model.module_names import module_names
from octavo.core.modes.record import ModeRecord, set_history
from octavo.core.modules import QuantAttention, quantized_class
from octavo.core.packed import PackedAffine, PackedChain, PackedTensor
from octavo.core.plugins import plugins


def load_quantized(
    directory: str | Path, trust_remote_code: bool = False, config: str | Path | None = None
) -> nn.Module:
    """Build the model of a quantized checkpoint, with dequantized weights and quantized activations.

    Weights get the values that their codes stand for; inputs, keys and values are quantized in simulation with
    the checkpoint's scales. The model so computes what an engine would that serves the checkpoint, in eval mode.

    Args:
        directory: A checkpoint that an installed exporter reads.
        trust_remote_code: Run modelling code that the checkpoint brings.
        config: Folder of the framework's config.json, for checkpoints that have none, as TensorRT-LLM's; their own
            when None.

    Raises:
        CheckpointError: no exporter knows the checkpoint, it is damaged or incomplete, it does not fit the model of its
            config, or it has none and `config` is not given.
        UnsupportedError: the model's parameters are stored in a form that cannot be read yet.
    """
    directory = Path(directory)
    exporter = exporter_of(directory)
    if config is None and isinstance(exporter, OwnConfigExporter):
        raise CheckpointError(
            f"{directory} is a {exporter.name} checkpoint, whose config.json is not the model's; give the folder of "
            "the original model as config=…"
        )
    checkpoint = exporter.open(directory)
    model = plugins().build_model(Path(config or directory), checkpoint.dtype, trust_remote_code)
    return fill_model(model, checkpoint).eval()


def fill_model(model: nn.Module, checkpoint: QuantizedCheckpoint) -> nn.Module:
    """Give a plain model the tensors and the activation quantizers of a checkpoint, in place.

    Raises:
        CheckpointError, UnsupportedError: as in `load_quantized`.
    """
    stored = checkpoint.activations()
    layers = checkpoint.layers
    places = layout_in_files(model, lambda matrix: matrix.removesuffix(".weight") in layers).places()
    _load_weights(model, checkpoint, places)
    activations = _activations_of(model, checkpoint, stored, places)
    attach_described(model, _described(model, activations))
    for name, activation in activations.items():
        quantizer: Any = model.get_submodule(name)
        if activation.state:
            quantizer.set_state(**activation.state)
        if activation.pre_quant_scale is not None:
            quantizer.pre_quant_scale.copy_(activation.pre_quant_scale)
        if activation.bias_value is not None:
            quantizer.bias_value.copy_(activation.bias_value)
        if activation.low_rank is not None:
            quantizer.low_rank_down.copy_(activation.low_rank[0])
            quantizer.low_rank_up.copy_(activation.low_rank[1])
    state = {"layers": describe_quantizers(model), "same_input": []}
    set_history(model, (ModeRecord("quantize", 1, {"checkpoint": str(checkpoint.directory)}, state),))
    return model


def exporter_of(directory: Path) -> Exporter:
    """Return the exporter that reads the checkpoint in `directory`.

    Raises:
        CheckpointError: there is none.
    """
    exporter = plugins().exporter_for(directory)
    if exporter is None:
        known = ", ".join(plugins().exporter_names())
        raise CheckpointError(f"{directory} is no quantized checkpoint of a known format; known: {known}")
    return exporter


@torch.no_grad()
def _load_weights(model: nn.Module, checkpoint: QuantizedCheckpoint, places: Mapping[str, Place]) -> None:
    targets = model.state_dict(keep_vars=True)
    loaded: set[tuple[int, int | None, int]] = set()
    unexpected = []
    for name, value in checkpoint.tensors():
        place = places.get(name)
        if place is None:
            unexpected.append(name)
            continue
        tensor = value if isinstance(value, Tensor) else _weight_of(model, place.name, value)
        _copy(name, place.of(targets[place.name]), tensor, checkpoint.directory)
        loaded.add((id(targets[place.name]), place.index, place.segment))
    missing = [
        name
        for name, place in places.items()
        if (id(targets[place.name]), place.index, place.segment) not in loaded
    ]
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.directory} does not fit {type(model).__name__}: missing {listed(missing) or 'nothing'}; "
            f"unexpected {listed(unexpected) or 'nothing'}"
        )


def _weight_of(model: nn.Module, name: str, packed: PackedTensor | PackedChain | PackedAffine) -> Tensor:
    """Return the values of a quantized weight [..., out, in] the way round in which its layer holds them."""
    quantized = quantized_class(type(model.get_submodule(name.rpartition(".")[0])))
    is_transposed = (isinstance(packed, PackedTensor) and packed.spec.is_stacked) or (
        quantized is not None and quantized.weight_is_transposed
    )
    return packed.dequantize().transpose(-1, -2) if is_transposed else packed.dequantize()


def _copy(name: str, target: Tensor, tensor: Tensor, directory: Path) -> None:
    if target.shape != tensor.shape:
        raise CheckpointError(
            f"{directory}: {name!r} has shape {tuple(tensor.shape)}, the model's has {tuple(target.shape)}"
        )
    target.copy_(tensor)


def _activations_of(
    model: nn.Module,
    checkpoint: QuantizedCheckpoint,
    stored: Mapping[str, InputState],
    places: Mapping[str, Place],
) -> dict[str, InputState]:
    """Return the activations of a checkpoint by the model's own names, and all of its attention layers' caches.

    Experts of one layer share an input quantizer, and the largest of their scales, as in engines.
    """
    own_modules = module_names({new: place.name for new, place in places.items() if place.index is None})
    attention = plugins().attention_layers(model)
    layers = {name for name, _ in model.named_modules()}
    activations: dict[str, InputState] = {}
    unknown = []
    for name, activation in stored.items():
        module, _, quantizer = name.rpartition(".")
        place = places.get(f"{module}.weight", Place(""))
        if place.index is not None:
            own_name = f"{place.name}_{quantizer}"
            activations[own_name] = _larger(activation, activations.get(own_name))
            continue
        own = own_modules.get(module, module)
        if own not in (attention if quantizer in QuantAttention.quantizer_names else layers):
            unknown.append(name)
        activations[f"{own}.{quantizer}"] = activation
    if unknown:
        raise CheckpointError(
            f"{checkpoint.directory} quantizes {listed(unknown)}; this {type(model).__name__} has no such layers, or "
            "none whose keys and values can be quantized"
        )
    for quantizer, activation in checkpoint.cache_without_scales().items():
        for name in attention:
            activations.setdefault(f"{name}.{quantizer}", activation)
    return activations


def _larger(one: InputState, other: InputState | None) -> InputState:
    """Return the state with the larger maxima."""
    if other is None:
        return one
    larger = {name: torch.maximum(t, other.state[name]) for name, t in one.state.items()}
    return replace(one, state=larger)


def _described(model: nn.Module, activations: Mapping[str, InputState]) -> dict[str, Any]:
    """Return what `attach_described` takes, for quantizers on activations only."""
    described: dict[str, Any] = {}
    experts = plugins().expert_layers(model)
    for name, activation in activations.items():
        layer_name, _, quantizer = name.rpartition(".")
        is_attention = quantizer in QuantAttention.quantizer_names
        layer_class = type(model.get_submodule(layer_name))
        mixin = QuantAttention if is_attention else experts.get(layer_name) or quantized_class(layer_class)
        names = mixin.constant_names() if mixin is not None else (quantizer,)
        layer = described.setdefault(
            layer_name, {"attention": is_attention, "quantizers": {n: [] for n in names}}
        )
        factor, low_rank = activation.pre_quant_scale, activation.low_rank or (None, None)
        stage = {
            "spec": None if activation.spec is None else activation.spec.to_json(),
            "range_mask": True,
            "enabled": activation.spec is not None,
            "pre_quant_scale": None if factor is None else list(factor.shape),
            "low_rank_down": None if low_rank[0] is None else list(low_rank[0].shape),
            "low_rank_up": None if low_rank[1] is None else list(low_rank[1].shape),
        }
        if activation.bias is not None and activation.bias_value is not None:
            stage |= {"bias": activation.bias.to_json(), "bias_value": list(activation.bias_value.shape)}
        layer["quantizers"][quantizer] = [stage]
    return described
