"""The export target: Octavo's packed tensors in one safetensors file, and a JSON that describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import InputState, LayerFormat, Verdict
from octavo.core.modules import quantized_layers
from octavo.core.packed import PackedTensor

TENSORS, DESCRIPTION = "scaled.safetensors", "scaled.json"


class ScaledDialect:
    """Stores the numbers that the simulation computes with."""

    name = "scaled"

    def weight_spec(self, weight: QuantSpec, inputs: QuantSpec | None) -> QuantSpec:
        return weight

    def weight_state(
        self, spec: QuantSpec, state: dict[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        return state

    def has_place_for(self, layer: nn.Module, quantizer: str) -> bool:
        return True

    def shared_state(self, weights: Any, shapes: Any) -> tuple[str, ...]:
        return ()

    def activation_state(
        self, quantizer: str, spec: QuantSpec, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return state


class ScaledCheckpoint:
    """An opened folder."""

    dtype = torch.float32

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._data = json.loads((directory / DESCRIPTION).read_text())
        self._tensors = load_file(directory / TENSORS)
        self._inputs = {name: QuantSpec.from_json(spec) for name, spec in self._data["inputs"].items()}
        self.layers = {
            name.removesuffix(".weight"): LayerFormat(
                QuantSpec.from_json(weight["spec"]), self._inputs.get(name.removesuffix(".weight"))
            )
            for name, weight in self._data["weights"].items()
        }

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedTensor]]:
        for name in self._data["plain"]:
            yield name, self._tensors[name]
        for name, description in self._data["weights"].items():
            yield name, PackedTensor.from_parts(self._under(f"{name}."), description)

    def activations(self) -> dict[str, InputState]:
        return {
            f"{name}.input_quantizer": InputState(spec, self._under(f"{name}.input_quantizer."))
            for name, spec in self._inputs.items()
        }

    def cache_without_scales(self) -> dict[str, InputState]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {"dialect": "scaled", "layers": len(self.layers)}

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in self._tensors.items() if n.startswith(prefix)}


class ScaledExporter:
    """Writes and reads the folders."""

    name = "scaled"
    quant_method = "scaled"
    dialect = ScaledDialect()

    def dialect_for(self, target: str) -> ScaledDialect:
        return self.dialect

    def detect(self, directory: Path) -> bool:
        return (directory / DESCRIPTION).is_file()

    def open(self, directory: Path) -> ScaledCheckpoint:
        return ScaledCheckpoint(directory)

    def stores(self, layer: LayerFormat) -> bool:
        return True

    def serves(self, target: str, layer: LayerFormat) -> Verdict:
        return Verdict("unknown", "no engine serves the scaled framework")

    serves_cache = serves_mixture = serves

    def serves_shape(self, target: str, layer: LayerFormat, shape: Sequence[int], is_fused: bool) -> Verdict:
        return self.serves(target, layer)

    def export(self, model: nn.Module, export_dir: Path, **options: Any) -> Path:
        tensors: dict[str, Tensor] = {}
        data: dict[str, Any] = {"width": model.width, "weights": {}, "inputs": {}}
        for name, layer in quantized_layers(model):
            weight, inputs = layer.weight_quantizer, layer.input_quantizer
            packed = PackedTensor.pack(layer.weight.detach(), weight.state_tensors(), weight.spec)
            parts, data["weights"][f"{name}.weight"] = packed.to_parts()
            tensors |= {f"{name}.weight.{part}": tensor for part, tensor in parts.items()}
            if inputs.enabled:
                data["inputs"][name] = inputs.spec.to_json()
                tensors |= {f"{name}.input_quantizer.{n}": t for n, t in inputs.named_state().items()}
        plain = {n: p.detach() for n, p in model.named_parameters() if n not in data["weights"]}
        data["plain"] = list(plain)
        export_dir.mkdir()
        save_file(
            {name: tensor.contiguous() for name, tensor in (tensors | plain).items()}, export_dir / TENSORS
        )
        (export_dir / DESCRIPTION).write_text(json.dumps(data))
        return export_dir


EXPORTER = ScaledExporter()
