"""Reading a unified Hugging Face checkpoint: ours, and ModelOpt's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.model.shard_reader import ShardReader, read_json
from octavo.core.packed import PackedTensor
from octavo.exporters.unified_hf.activation_scales import divisor_of, state_from_scale
from octavo.exporters.unified_hf.inspection import FP8_KV, NVFP4_KV
from octavo.exporters.unified_hf.metadata import MIXED
from octavo.exporters.unified_hf.schemes import Scheme, scheme_named
from octavo.exporters.unified_hf.spelling import unspell

_SUFFIXES = ("weight", "weight_scale", "weight_scale_2")


class UnifiedHfCheckpoint:
    """An opened checkpoint; see `core.model.exporter.QuantizedCheckpoint`.

    Raises:
        CheckpointError: files are missing or damaged, metadata names an unknown format, or a tensor does not
            fit its format. File and tensor are named.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shards = ShardReader(directory)
        self._config = read_json(directory / "config.json")
        self._metadata = _metadata(directory, self._config)
        self.dtype = _dtype(self._config, directory)
        suffix = ".weight_scale"
        self._schemes = {
            name.removesuffix(suffix): self._scheme(name.removesuffix(suffix))
            for name in self._shards.names()
            if name.endswith(suffix)
        }
        self.layers = {module: LayerFormat(s.weight, s.inputs) for module, s in self._schemes.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedTensor]]:
        """Yield every parameter by name: packed where it is quantized, as it is elsewhere."""
        for name in self._shards.names():
            module, _, suffix = name.rpartition(".")
            if suffix in ("weight_scale", "weight_scale_2", "input_scale", "k_scale", "v_scale"):
                continue
            if suffix == "weight" and module in self._schemes:
                yield name, self._packed(module)
            else:
                yield name, self._shards.tensor(name)

    def activations(self) -> dict[str, InputState]:
        """Return format and state of every activation quantizer by its full name."""
        states = {}
        for module, scheme in self._schemes.items():
            if scheme.inputs is not None:
                scale = self._scale(f"{module}.input_scale", bool(scheme.inputs.state))
                states[f"{module}.input_quantizer"] = _input_state("input_quantizer", scale, scheme.inputs)
        return states | self._kv_states()

    def describe(self) -> dict[str, Any]:
        """Return what `octavo inspect` shows, JSON-ready."""
        algorithms: dict[str, int] = {}
        for scheme in self._schemes.values():
            algorithms[scheme.quant_algo] = algorithms.get(scheme.quant_algo, 0) + 1
        return {
            "dialect": "unified_hf",
            "quant_algo": self._metadata["quant_algo"],
            "kv_cache_quant_algo": self._metadata["kv_cache_quant_algo"],
            "layers": algorithms,
            "excluded": self._metadata["exclude_modules"],
            "num_tensors": len(self._shards.names()),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def _scheme(self, module: str) -> Scheme:
        algorithm, where = self._metadata["quant_algo"], str(self.directory)
        if str(algorithm).upper() == MIXED:
            layers = self._metadata.get("quantized_layers") or {}
            if module not in layers:
                raise CheckpointError(f"{where}: {module} has a weight_scale and is not in quantized_layers")
            algorithm = layers[module]["quant_algo"]
        if algorithm is None:
            raise CheckpointError(
                f"{where}: {module} has a weight_scale and the checkpoint names no quant_algo"
            )
        return scheme_named(algorithm, f"{module}.input_scale" in self._shards, where)

    def _packed(self, module: str) -> PackedTensor:
        where = self._shards.where(f"{module}.weight")
        found = {
            s: self._shards.tensor(f"{module}.{s}") for s in _SUFFIXES if f"{module}.{s}" in self._shards
        }
        scheme = self._schemes[module]
        columns = found["weight"].shape[-1] * 8 // scheme.weight.element_type.bits
        if scheme.weight.element == "int4":  # packed along rows
            columns = found["weight"].shape[-1]
        blocks = found["weight_scale"].shape[-1] if found["weight_scale"].dim() == 2 else 1
        return unspell(found, scheme.weight_with_block(-(-columns // max(blocks, 1))), self.dtype, where)

    def _scale(self, name: str, needed: bool) -> Tensor | None:
        if name not in self._shards:
            if needed:
                raise CheckpointError(f"{self.directory}: tensor {name!r} is missing, which its format needs")
            return None
        scale = self._shards.tensor(name)
        if scale.numel() != 1 or not scale.float().isfinite().all() or scale.float().item() <= 0:
            raise CheckpointError(f"{self._shards.where(name)} must be one positive number, found {scale}")
        return scale.float()

    def _kv_states(self) -> dict[str, InputState]:
        algorithm = self._metadata["kv_cache_quant_algo"]
        if algorithm is None:
            return {}
        spec = NVFP4_KV if algorithm == "NVFP4" else FP8_KV
        states = {}
        for name in self._shards.names():
            module, _, suffix = name.rpartition(".")
            if suffix in ("k_scale", "v_scale"):
                attention = module.removesuffix(f".{suffix[0]}_proj")
                quantizer = f"{suffix[0]}_bmm_quantizer"
                states[f"{attention}.{quantizer}"] = _input_state(quantizer, self._scale(name, True), spec)
        return states


def _input_state(quantizer: str, scale: Tensor | None, spec: QuantSpec) -> InputState:
    state = {} if scale is None else state_from_scale(scale, spec, divisor_of(quantizer, spec))
    return InputState(spec, state)


def is_unified_hf(directory: Path) -> bool:
    """Whether a folder holds a checkpoint of this dialect."""
    if (directory / "hf_quant_config.json").is_file():
        return True
    if not (directory / "config.json").is_file():
        return False
    config = read_json(directory / "config.json").get("quantization_config") or {}
    return config.get("quant_method") == "modelopt"


def _metadata(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return quant_algo, kv_cache_quant_algo, exclude_modules and quantized_layers from whichever file has them."""
    if (directory / "hf_quant_config.json").is_file():
        nested = read_json(directory / "hf_quant_config.json").get("quantization")
        if not isinstance(nested, dict) or "quant_algo" not in nested:
            raise CheckpointError(f"{directory / 'hf_quant_config.json'} names no quantization.quant_algo")
        return {"kv_cache_quant_algo": None, "exclude_modules": [], **nested}
    flat = config.get("quantization_config") or {}
    if "quant_algo" not in flat:
        raise CheckpointError(f"{directory / 'config.json'} names no quantization_config.quant_algo")
    kv = flat.get("kv_cache_scheme")
    kv_name = None if kv is None else "NVFP4" if kv.get("num_bits") == 4 else "FP8"
    return {**flat, "kv_cache_quant_algo": kv_name, "exclude_modules": flat.get("ignore", [])}


def _dtype(config: dict[str, Any], directory: Path) -> torch.dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{directory / 'config.json'} has dtype {name!r}, which torch does not know")
    return dtype
