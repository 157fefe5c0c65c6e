"""Reading a TensorRT-LLM checkpoint of any layout: ours, and ModelOpt's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.model.shard_reader import config_dtype, positive_number
from octavo.core.packed import PackedChain, PackedTensor
from octavo.core.packed.rows import take_rows
from octavo.exporters.tensorrt_llm.caches import CACHE_QUANTIZERS, CACHES
from octavo.exporters.tensorrt_llm.formats import Format
from octavo.exporters.tensorrt_llm.huggingface_names import HuggingFaceNames, NamedRows
from octavo.exporters.tensorrt_llm.layer_formats import cache_algo, layer_formats
from octavo.exporters.tensorrt_llm.layout import section_of
from octavo.exporters.tensorrt_llm.rank_reader import RankReader
from octavo.exporters.tensorrt_llm.stages import LAYER
from octavo.exporters.tensorrt_llm.unspelling import SCALES, SECOND, WEIGHT, state_of, stored_spec, unspell

_FACTOR, _INPUT_SCALE, _JOINT = (
    "prequant_scaling_factor",
    "activation_scaling_factor",
    "kv_cache_scaling_factor",
)
_OF_EXPERTS = (WEIGHT, *SCALES)  # have a leading dim of experts where these are stacked
_CODES = (torch.int8, torch.uint8, torch.float8_e4m3fn)

AnyTensor = Tensor | PackedTensor | PackedChain


class TensorRtLlmCheckpoint:
    """An opened checkpoint under Hugging Face's names; see `core.model.exporter.QuantizedCheckpoint`.

    Layers that TensorRT-LLM joins are taken apart, ranks put together; a tensor is read when it is asked for.

    Raises:
        CheckpointError: files are missing or damaged, metadata names an unknown format, or a tensor does not fit its
            format. Rank and tensor are named.
        UnsupportedError: the architecture's names in the framework are not known.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ranks = RankReader(directory)
        self.dtype = config_dtype(self._ranks.config, directory)
        self._names = HuggingFaceNames(self._ranks.config)
        self._suffixes = _by_layer(self._ranks.names())
        quantized = [layer for layer, suffixes in self._suffixes.items() if set(suffixes) & set(SCALES)]
        self._formats = layer_formats(self._ranks, quantized)
        self.layers = {
            part.name: self._layer_format(layer, known)
            for layer, known in self._formats.items()
            for part in self._names.parts_of(layer)
        }

    def tensors(self) -> Iterator[tuple[str, AnyTensor]]:
        """Yield every parameter by name: packed where it is quantized, as it is elsewhere."""
        for layer, suffixes in self._suffixes.items():
            if WEIGHT not in suffixes and "bias" not in suffixes:
                continue  # scales of keys and values
            found = {
                suffix: self._ranks.tensor(f"{layer}.{suffix}")
                for suffix in suffixes
                if suffix in (WEIGHT, "bias", *SCALES, SECOND)
            }
            for part in self._names.parts_of(layer):
                yield f"{part.name}.weight", self._weight(layer, found, part)
                if "bias" in found:
                    yield f"{part.name}.bias", _rows(found["bias"], part)

    def activations(self) -> dict[str, InputState]:
        """Return format and state of every activation quantizer by its full name.

        Raises:
            CheckpointError: a scale is missing or no positive number, or a factor is not.
        """
        states = {}
        for layer, known in self._formats.items():
            factor = self._factor(layer)
            if known.inputs is None and factor is None:
                continue
            state: dict[str, Tensor] = {}
            if known.inputs is not None and known.inputs.state:
                state = state_of(self._number(layer, _INPUT_SCALE), known.inputs)
            for part in self._names.parts_of(layer):
                own = factor[part.expert] if factor is not None and factor.dim() == 2 else factor
                states[f"{part.name}.input_quantizer"] = InputState(known.inputs, state, own)
        return states | self._cache_states()

    def cache_without_scales(self) -> dict[str, InputState]:
        """Return what quantizes keys and values that have no scales, by quantizer: engines take the scale 1."""
        name = cache_algo(self._ranks)
        if name is None:
            return {}
        spec = CACHES[name]
        return {quantizer: InputState(spec, state_of(torch.ones(()), spec)) for quantizer in CACHE_QUANTIZERS}

    def describe(self) -> dict[str, Any]:
        """Return what `octavo inspect` shows, JSON-ready."""
        config, layout = self._ranks.config, self._ranks.layout
        return {
            "dialect": "tensorrt_llm",
            "architecture": config.get("architecture"),
            "ranks": {"tp": layout.tp_size, "pp": layout.pp_size, "ep": layout.moe_ep_size},
            "quant_algo": section_of(config, "quantization").get("quant_algo"),
            "kv_cache_quant_algo": cache_algo(self._ranks),
            "layers": dict(Counter(known.quant_algo for known in self._formats.values())),
            "num_tensors": len(self._ranks.names()),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def _layer_format(self, layer: str, known: Format) -> LayerFormat:
        shapes = (self._ranks.part_shape(f"{layer}.{suffix}") for suffix in (WEIGHT, known.scale))
        smoothing: Literal["", "scaled"] = "scaled" if _FACTOR in self._suffixes[layer] else ""
        return LayerFormat(stored_spec(known, *shapes), known.inputs, known.then, smoothing)

    def _weight(self, layer: str, found: Mapping[str, Tensor], part: NamedRows) -> AnyTensor:
        if part.expert is not None:
            found = {
                suffix: tensor[part.expert] if suffix in _OF_EXPERTS else tensor
                for suffix, tensor in found.items()
            }
        where = self._ranks.where(f"{layer}.{WEIGHT}")
        if layer in self._formats:
            return _rows(unspell(found, self._formats[layer], self.dtype, where), part)
        weight = found[WEIGHT]
        if weight.dtype in _CODES:
            raise CheckpointError(f"{where} holds codes ({weight.dtype}), and its scales are missing")
        rows = _rows(self._plain(layer, weight), part)
        is_linear = LAYER.fullmatch(layer) is not None and weight.dim() == 2
        if isinstance(rows, Tensor) and is_linear and self._names.family.transposed:
            return rows.transpose(0, 1)
        return rows

    def _plain(self, layer: str, tensor: Tensor) -> Tensor:
        """Return a tensor as the framework has it: some multiply by 1 + the weight of a norm, TensorRT-LLM by it."""
        is_norm = "layernorm" in layer or ".ln_" in layer
        adds_one = is_norm and self._names.family.norm_adds_one
        return (tensor.float() - 1.0).to(tensor.dtype) if adds_one else tensor

    def _number(self, layer: str, suffix: str) -> Tensor:
        name = f"{layer}.{suffix}"
        if suffix not in self._suffixes[layer]:
            raise CheckpointError(f"{self.directory}: tensor {name!r} is missing, which its format needs")
        return positive_number(self._ranks.tensor(name), self._ranks.where(name))

    def _factor(self, layer: str) -> Tensor | None:
        """Return what a layer's input is multiplied with, [in] or [experts, in]."""
        if _FACTOR not in self._suffixes[layer]:
            return None
        name = f"{layer}.{_FACTOR}"
        factor = self._ranks.tensor(name).float()
        if not (factor.isfinite() & (factor > 0)).all():
            raise CheckpointError(f"{self._ranks.where(name)} holds factors that are no positive numbers")
        return factor

    def _cache_states(self) -> dict[str, InputState]:
        name, states = cache_algo(self._ranks), {}
        for layer, suffixes in self._suffixes.items() if name is not None else ():
            if not any(suffix.endswith("cache_scaling_factor") for suffix in suffixes):
                continue
            attention, spec = self._names.attention_of(layer), CACHES[str(name)]
            for letter, quantizer in zip("kv", CACHE_QUANTIZERS, strict=True):
                own = f"{letter}_cache_scaling_factor"
                scale = self._number(
                    layer, own if own in suffixes else _JOINT
                )  # older writers have the joint one
                states[f"{attention}.{quantizer}"] = InputState(spec, state_of(scale, spec))
        return states


def _by_layer(names: list[str]) -> dict[str, list[str]]:
    """Return the tensors of each layer, by the last part of their names."""
    found: dict[str, list[str]] = {}
    for name in names:
        layer, _, suffix = name.rpartition(".")
        found.setdefault(layer, []).append(suffix)
    return found


def _rows(tensor: AnyTensor, part: NamedRows) -> AnyTensor:
    return tensor if part.rows is None else take_rows(tensor, part.rows)
