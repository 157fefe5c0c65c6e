"""A quantized checkpoint as the model that it stands for, on any device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.attach import attach_described, describe_quantizers, detach
from octavo.core.errors import CheckpointError, listed
from octavo.core.model.exporter import Exporter, InputState, QuantizedCheckpoint
from octavo.core.modes.record import ModeRecord, set_history
from octavo.core.modules import QuantAttention, quantized_class
from octavo.core.packed import PackedTensor
from octavo.core.plugins import plugins


def load_quantized(directory: str | Path, trust_remote_code: bool = False) -> nn.Module:
    """Build the model of a quantized checkpoint, with dequantized weights and quantized activations.

    Weights get the values that their codes stand for; inputs, keys and values are quantized in simulation with
    the checkpoint's scales. The model so computes what an engine would that serves the checkpoint.

    Args:
        directory: A checkpoint that an installed exporter reads.
        trust_remote_code: Run modelling code that the checkpoint brings.

    Raises:
        CheckpointError: no exporter knows the checkpoint, or it is damaged or incomplete.
    """
    directory = Path(directory)
    checkpoint = exporter_of(directory).open(directory)
    model = plugins().build_model(directory, checkpoint.dtype, trust_remote_code)
    _load_weights(model, checkpoint)
    activations = checkpoint.activations()
    try:
        attach_described(model, _described(model, activations))
    except BaseException:
        detach(model)
        raise
    for name, activation in activations.items():
        if activation.state:
            model.get_submodule(name).set_state(**activation.state)  # type: ignore[operator]
    state = {"layers": describe_quantizers(model), "same_input": []}
    set_history(model, (ModeRecord("quantize", 1, {"checkpoint": str(directory)}, state),))
    return model


def exporter_of(directory: Path) -> Exporter:
    """Return the exporter that reads the checkpoint in `directory`.

    Raises:
        CheckpointError: there is none.
    """
    names = plugins().exporter_names()
    for exporter in map(plugins().exporter, names):
        if exporter.detect(directory):
            return exporter
    raise CheckpointError(
        f"{directory} is no quantized checkpoint of a known format; known: {', '.join(names)}"
    )


@torch.no_grad()
def _load_weights(model: nn.Module, checkpoint: QuantizedCheckpoint) -> None:
    own_names = {name: name for name in model.state_dict()}
    own_names = {new: name for name, new in plugins().checkpoint_names(model, list(own_names)).items()}
    targets = model.state_dict(keep_vars=True)
    loaded: set[int] = set()
    unexpected = []
    for name, value in checkpoint.tensors():
        target = targets.get(own_names.get(name, name))
        if target is None:
            unexpected.append(name)
            continue
        tensor = value.dequantize() if isinstance(value, PackedTensor) else value
        _copy(name, target, tensor, checkpoint.directory)
        loaded.add(id(target))
    missing = [name for name, target in targets.items() if id(target) not in loaded]
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.directory} does not fit {type(model).__name__}: missing {listed(missing) or 'nothing'}; "
            f"unexpected {listed(unexpected) or 'nothing'}"
        )


def _copy(name: str, target: Tensor, tensor: Tensor, directory: Path) -> None:
    if target.shape != tensor.shape:
        raise CheckpointError(
            f"{directory}: {name!r} has shape {tuple(tensor.shape)}, the model's has {tuple(target.shape)}"
        )
    target.copy_(tensor)


def _described(model: nn.Module, activations: Mapping[str, InputState]) -> dict[str, Any]:
    """Return what `attach_described` takes, for quantizers on activations only."""
    described: dict[str, Any] = {}
    for name, activation in activations.items():
        layer_name, _, quantizer = name.rpartition(".")
        is_attention = quantizer in QuantAttention.quantizer_names
        quantized = QuantAttention if is_attention else quantized_class(type(model.get_submodule(layer_name)))
        names = quantized.quantizer_names if quantized is not None else (quantizer,)
        layer = described.setdefault(
            layer_name, {"attention": is_attention, "quantizers": {n: [] for n in names}}
        )
        stage = {"spec": activation.spec.to_json(), "range_mask": True, "enabled": True}
        layer["quantizers"][quantizer] = [stage]
    return described
