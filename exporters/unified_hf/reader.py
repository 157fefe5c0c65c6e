"""Reading a unified Hugging Face checkpoint: ours, and ModelOpt's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.model.shard_reader import ShardReader, config_dtype, read_json
from octavo.core.model.stored_weight import part_name
from octavo.core.packed import PackedChain, PackedTensor
from octavo.exporters.unified_hf.activation_scales import divisor_of, state_from_scale
from octavo.exporters.unified_hf.caches import BIAS, CACHES, NVFP4_AFFINE
from octavo.exporters.unified_hf.metadata_reader import NESTED_FILE, read_metadata
from octavo.exporters.unified_hf.schemes import Scheme, scheme_named
from octavo.exporters.unified_hf.spelling import CODE_DTYPES, unspell, weight_shape
from octavo.exporters.unified_hf.stack_spelling import unspell_stack

_WEIGHT_PARTS = ("weight", "weight_scale", "weight_scale_2")
_CACHE_SCALES = ("k_scale", "v_scale")
_CACHE_BIASES = (".k_bias", ".v_bias")
_STACK_BLOCK = 16  # of NVFP4, the only format with blocks that stacks in one tensor have
_FACTOR = "pre_quant_scale"
_LOW_RANK = ("svdquant_lora_a", "svdquant_lora_b")
_SCALES = ("weight_scale", "weight_scale_2", "input_scale", _FACTOR, *_LOW_RANK, *_CACHE_SCALES)


class UnifiedHfCheckpoint:
    """An opened checkpoint; see `core.model.exporter.QuantizedCheckpoint`.

    Raises:
        CheckpointError: files are missing or damaged, metadata names an unknown format, or a tensor does not
            fit its format. File and tensor are named.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shards = ShardReader(directory)
        config = read_json(directory / "config.json")
        self._metadata = read_metadata(directory, config)
        self.dtype = config_dtype(config, directory)
        self._stacks = set(self._modules_with("weight_scale", "_"))
        modules = [*self._modules_with("weight_scale"), *self._stacks]
        self._schemes = {module: self._scheme(module) for module in sorted(modules)}
        self._weights = {self._part(module, "weight"): module for module in self._schemes}
        for suffix in ("weight_scale_2", "input_scale", _FACTOR, *_LOW_RANK):
            for module in self._modules_with(suffix):
                if module not in self._schemes:
                    raise CheckpointError(
                        f"{directory} has {module}.{suffix} and lacks {module}.weight_scale, which goes with it"
                    )
        self.layers = {
            module: LayerFormat(s.weight, s.inputs, s.then, self._smoothing(module))
            for module, s in self._schemes.items()
        }

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedTensor | PackedChain]]:
        """Yield every parameter by name: packed where it is quantized, as it is elsewhere."""
        scales = {self._part(stack, scale) for stack in self._stacks for scale in _SCALES}
        for name in self._shards.names():
            if name.rpartition(".")[2] in _SCALES or name in scales or self._is_cache_bias(name):
                continue
            yield name, self.tensor(name)

    def tensor(self, name: str) -> Tensor | PackedTensor | PackedChain:
        """Return one of the parameters that `tensors` yields.

        Raises:
            CheckpointError: there is none of that name, it does not fit its format, or codes have no scale.
        """
        if name in self._weights:
            return self._weight(self._weights[name])
        module, _, suffix = name.rpartition(".")
        tensor = self._shards.tensor(name)
        if (suffix == "weight" or tensor.dim() == 3) and tensor.dtype in CODE_DTYPES:
            scale = part_name(module if suffix == "weight" else name, "weight_scale", suffix != "weight")
            raise CheckpointError(
                f"{self._shards.where(name)} holds codes ({tensor.dtype}), and {scale} is missing"
            )
        return tensor

    def activations(self) -> dict[str, InputState]:
        """Return format and state of every activation quantizer by its full name.

        Raises:
            CheckpointError: a scale is missing or no positive number, or a factor is not.
        """
        states = {}
        for module, scheme in self._schemes.items():
            factor = self._factor(module) if self._has_factor(module) else None
            state: dict[str, Tensor] = {}
            if scheme.inputs is not None and scheme.inputs.state:
                state = self._state("input_quantizer", scheme.inputs, self._part(module, "input_scale"))
            if scheme.inputs is not None or factor is not None:
                states[self._part(module, "input_quantizer")] = InputState(scheme.inputs, state, factor)
            if self.layers[module].smoothing == "low_rank":
                states[f"{module}.weight_quantizer"] = InputState(None, {}, low_rank=self._low_rank(module))
        return states | self._cache_states()

    def cache_without_scales(self) -> dict[str, InputState]:
        """Return what quantizes keys and values that have no scales, by quantizer: engines take the scale 1."""
        if self._metadata.cache is None:
            return {}
        spec, one = CACHES[self._metadata.cache], torch.ones(())
        quantizers = ("k_bmm_quantizer", "v_bmm_quantizer")
        return {q: InputState(spec, state_from_scale(one, spec, divisor_of(q, spec))) for q in quantizers}

    def describe(self) -> dict[str, Any]:
        """Return what `octavo inspect` shows, JSON-ready."""
        return {
            "dialect": "unified_hf",
            "quant_algo": self._metadata.quant_algo,
            "kv_cache_quant_algo": self._metadata.cache,
            "layers": dict(Counter(scheme.quant_algo for scheme in self._schemes.values())),
            "excluded": self._metadata.exclude,
            "num_tensors": len(self._shards.names()),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def _modules_with(self, suffix: str, separator: str = ".") -> list[str]:
        ending = f"{separator}{suffix}"
        return [name.removesuffix(ending) for name in self._shards.names() if name.endswith(ending)]

    def _part(self, module: str, suffix: str) -> str:
        return part_name(module, suffix, module in self._stacks)

    def _scheme(self, module: str) -> Scheme:
        static_inputs = self._part(module, "input_scale") in self._shards
        return scheme_named(self._metadata.quant_algo_of(module), static_inputs, str(self.directory))

    def _has_factor(self, module: str) -> bool:
        return f"{module}.{_FACTOR}" in self._shards

    def _smoothing(self, module: str) -> Literal["", "scaled", "low_rank"]:
        if any(f"{module}.{suffix}" in self._shards for suffix in _LOW_RANK):
            return "low_rank"
        return "scaled" if self._has_factor(module) else ""

    def _low_rank(self, module: str) -> tuple[Tensor, Tensor]:
        """Return the factors [rank, in] and [out, rank] of what is added to a weight."""
        names = [f"{module}.{suffix}" for suffix in _LOW_RANK]
        if missing := [name for name in names if name not in self._shards]:
            raise CheckpointError(
                f"{self.directory}: tensor {missing[0]!r} is missing beside the other factor"
            )
        down, up = (self._shards.tensor(name).float() for name in names)
        codes = f"{module}.weight"
        rows, columns = weight_shape(
            self._shards.tensor(codes), self._schemes[module].weight, self._shards.where(codes)
        )
        if (*up.shape[:1], *down.shape[1:]) != (rows, columns) or up.shape[1:] != down.shape[:1]:
            raise CheckpointError(
                f"{self._shards.where(names[0])} and {_LOW_RANK[1]} make a weight [{rows}, {columns}], found shapes "
                f"{tuple(down.shape)} and {tuple(up.shape)}"
            )
        if not (down.isfinite().all() and up.isfinite().all()):
            raise CheckpointError(
                f"{self._shards.where(names[0])} or {_LOW_RANK[1]} holds NaN or infinite values"
            )
        return down, up

    def _factor(self, module: str) -> Tensor:
        """Return what a layer's input is multiplied with [in]."""
        name = f"{module}.{_FACTOR}"
        factor, where = self._shards.tensor(name), self._shards.where(name)
        codes = f"{module}.weight"
        channels = weight_shape(
            self._shards.tensor(codes), self._schemes[module].weight, self._shards.where(codes)
        )[1]
        if tuple(factor.shape) != (channels,) or not factor.is_floating_point():
            raise CheckpointError(
                f"{where} has a float for each of {channels} input channels, found {factor.dtype} of shape "
                f"{tuple(factor.shape)}"
            )
        if not (factor.isfinite() & (factor > 0)).all():
            raise CheckpointError(f"{where} holds factors that are no positive numbers")
        return factor.float()

    def _weight(self, module: str) -> PackedTensor | PackedChain:
        scheme, packed = self._schemes[module], self._packed(module)
        if scheme.then is None:
            return packed
        state = self._state("weight_quantizer", scheme.then, f"{module}.weight_scale_2")
        return PackedChain(packed, scheme.then, tuple(state.values()))

    def _packed(self, module: str) -> PackedTensor:
        own = _WEIGHT_PARTS if self._schemes[module].then is None else _WEIGHT_PARTS[:2]
        names = {part: self._part(module, part) for part in own}
        found = {part: self._shards.tensor(name) for part, name in names.items() if name in self._shards}
        where, scheme = self._shards.where(names["weight"]), self._schemes[module]
        length = self._metadata.group_size_of(module)
        if module in self._stacks:
            if scheme.stored_stack is None:
                raise CheckpointError(
                    f"{where}: experts in one tensor are read as FP8 or NVFP4, found {scheme.quant_algo}, whose blocks "
                    "and channels do not follow the inputs there"
                )
            spec = scheme.weight_with_block(length or _STACK_BLOCK, is_stack=True)
            return unspell_stack(found, spec, self.dtype, where)
        if length is None:
            columns = weight_shape(found["weight"], scheme.weight, where)[1]
            length = columns // max([1, *found["weight_scale"].shape[-1:]])
        return unspell(found, scheme.weight_with_block(max(length, 1)), self.dtype, where)

    def _state(self, quantizer: str, spec: QuantSpec, name: str) -> dict[str, Tensor]:
        """Return the state that the scale called `name` stands for."""
        if name not in self._shards:
            raise CheckpointError(f"{self.directory}: tensor {name!r} is missing, which its format needs")
        scale = self._shards.positive_number(name)
        return state_from_scale(scale, spec, divisor_of(quantizer, spec))

    def _cache_states(self) -> dict[str, InputState]:
        if self._metadata.cache is None:
            return {}
        spec, states = CACHES[self._metadata.cache], {}
        for suffix in _CACHE_SCALES:
            for module in self._modules_with(suffix):
                attention = module.removesuffix(f".{suffix[0]}_proj")
                for letter in "kv":  # one without the other is missing something
                    place = attention if module == attention else f"{attention}.{letter}_proj"
                    quantizer = f"{letter}_bmm_quantizer"
                    state = self._state(quantizer, spec, f"{place}.{letter}_scale")
                    bias = self._cache_bias(f"{place}.{letter}_bias")
                    how = None if bias is None else BIAS
                    states[f"{attention}.{quantizer}"] = InputState(spec, state, bias=how, bias_value=bias)
        return states

    def _is_cache_bias(self, name: str) -> bool:
        """Whether a tensor is what is subtracted from keys or values, and no parameter that a model calls so."""
        return name.endswith(_CACHE_BIASES) and f"{name.removesuffix('bias')}scale" in self._shards

    def _cache_bias(self, name: str) -> Tensor | None:
        """Return what is subtracted from keys or values, fp32 [1, heads, 1, head_dim]; None where there is none."""
        if name not in self._shards:
            if self._metadata.cache == NVFP4_AFFINE:
                raise CheckpointError(
                    f"{self.directory}: tensor {name!r} is missing, which {NVFP4_AFFINE} needs"
                )
            return None
        bias, where = self._shards.tensor(name), self._shards.where(name)
        if bias.dim() != 4 or bias.shape[0] != 1 or bias.shape[2] != 1 or not bias.is_floating_point():
            raise CheckpointError(
                f"{where} has a float of shape [1, heads, 1, head_dim], found {bias.dtype} of shape {tuple(bias.shape)}"
            )
        if not bias.isfinite().all():
            raise CheckpointError(f"{where} holds NaN or infinite values")
        return bias.float()


def is_unified_hf(directory: Path) -> bool:
    """Whether a folder holds a checkpoint of this dialect."""
    if (directory / NESTED_FILE).is_file():
        return True
    if not (directory / "config.json").is_file():
        return False
    config = read_json(directory / "config.json").get("quantization_config")
    return isinstance(config, dict) and config.get("quant_method") == "modelopt"
