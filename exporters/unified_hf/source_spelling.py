"""How the dialect writes what a checkpoint is made from: its tensors, scales of the cache, and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from octavo.core.errors import ExportError, listed
from octavo.core.formats import QuantSpec
from octavo.core.model.checkpoint_source import CheckpointSource, PackedWeight
from octavo.core.model.exporter import LayerFormat
from octavo.core.model.spelled_files import Spelling
from octavo.core.packed import PackedChain
from octavo.exporters.unified_hf.activation_scales import divisor_of, scale_from_state
from octavo.exporters.unified_hf.caches import CACHES, cache_name
from octavo.exporters.unified_hf.metadata import flat_metadata, nested_metadata
from octavo.exporters.unified_hf.metadata_reader import NESTED_FILE
from octavo.exporters.unified_hf.schemes import Scheme, scheme_for, schemes
from octavo.exporters.unified_hf.spelling import spell
from octavo.exporters.unified_hf.stack_spelling import spell_stack


def spelling_of(source: CheckpointSource, peer: bool) -> Spelling:
    """Return how `source` is written.

    Args:
        source: What is written, in this dialect's numbers.
        peer: Weights that are a single square block have a scale without dims, as in the peer's files, which
            engines refuse.

    Raises:
        ExportError: a format of weights or of the cache has no place in this dialect; layers are named.
    """
    if source.cache is not None and cache_name(source.cache) is None:
        known = " or ".join(dict.fromkeys(map(str, CACHES.values())))
        raise ExportError(f"the KV cache of a checkpoint has one format, {known}; found {source.cache}")
    layers = {name: (scheme, source.layers[name].weight) for name, scheme in _schemes(source).items()}
    has_bias = any(state.bias_value is not None for state in source.cache_states().values())
    arguments = (layers, source.cache, source.excluded, has_bias)
    return Spelling(
        partial(_spelled, peer=peer),
        {
            "config.json": {"quantization_config": flat_metadata(*arguments)},
            NESTED_FILE: nested_metadata(*arguments),
        },
        _cache_tensors(source),
    )


def _schemes(source: CheckpointSource) -> dict[str, Scheme]:
    """Return the scheme of every layer; one whose factors are folded is named as if it had them."""
    found: dict[str, Scheme] = {}
    unknown: dict[LayerFormat, list[str]] = {}
    for name, layer in source.layers.items():
        scheme = scheme_for(replace(layer, smoothing="scaled") if name in source.folded else layer)
        if scheme is None:
            unknown.setdefault(layer, []).append(name)
        else:
            found[name] = scheme
    if unknown:
        known = ", ".join(dict.fromkeys(scheme.quant_algo for scheme in schemes()))
        shown = "; ".join(f"{layer}: {listed(names, 2)}" for layer, names in unknown.items())
        raise ExportError(
            f"{sum(map(len, unknown.values()))} layers have formats that this dialect cannot store: {shown}. "
            f"It stores {known}"
        )
    return found


def _spelled(weight: PackedWeight, peer: bool) -> dict[str, Tensor]:
    if weight.is_stack:
        codes = spell_stack(weight.codes)
    else:  # in segments the peer's square blocks keep four dims, too
        codes = spell(weight.codes, peer and not weight.is_segment)
    return codes | _companions(weight)


def _companions(weight: PackedWeight) -> dict[str, Tensor]:
    """Return what lies beside codes and scales: the input's scale and factor, the scale of a second format."""
    inputs, dtype = weight.inputs, weight.codes.dtype
    found: dict[str, Tensor] = {}
    if inputs is not None and inputs.spec is not None and inputs.state:
        found["input_scale"] = _scale("input_quantizer", inputs.spec, inputs.state)
    if inputs is not None and inputs.pre_quant_scale is not None:
        found["pre_quant_scale"] = inputs.pre_quant_scale.to(dtype)
    if weight.low_rank is not None:
        found["svdquant_lora_a"], found["svdquant_lora_b"] = (part.to(dtype) for part in weight.low_rank)
    if isinstance(weight.packed, PackedChain) and weight.packed.then.state:
        then = weight.packed.then
        state = dict(zip(then.state, weight.packed.state, strict=True))
        found["weight_scale_2"] = _scale("weight_quantizer", then, state)
    return found


def _cache_tensors(source: CheckpointSource) -> dict[str, Tensor]:
    """Return scales and biases of keys and values; the layers that make these carry them, where there are such."""
    tensors = {}
    for name, state in source.cache_states().items():
        attention, _, quantizer = name.rpartition(".")
        letter = quantizer[0]
        maker = f"{attention}.{letter}_proj"
        place = maker if maker in source.modules else attention
        if state.spec is not None and state.state:
            tensors[f"{place}.{letter}_scale"] = _scale(quantizer, state.spec, state.state)
        if state.bias_value is not None:
            tensors[f"{place}.{letter}_bias"] = state.bias_value.to(source.dtype)
    return tensors


def _scale(quantizer: str, spec: QuantSpec, state: Mapping[str, Tensor]) -> Tensor:
    return scale_from_state(dict(state), divisor_of(quantizer, spec))
