"""The verifier of this dialect, as core knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError
from octavo.core.verification.cache_scales import cache_scales, check_cache
from octavo.core.verification.expected_model import ExpectedModel, expected_model
from octavo.core.verification.finding import Finding, error, warning
from octavo.core.verification.joined_layers import SharedScale, joined_layers, unequal_scales
from octavo.core.verification.layer_rules import LayerRules, layer_rules
from octavo.core.verification.stored_files import StoredFiles
from octavo.core.verification.tensor_checks import Reading, check_tensors
from octavo.exporters.unified_hf.metadata_reader import Metadata
from octavo.exporters.unified_hf.reader import is_unified_hf
from octavo.exporters.unified_hf.schemes import scheme_named
from octavo.exporters.unified_hf.verification.description import (
    check_descriptions,
    description_for,
    read_descriptions,
    reader_table,
)
from octavo.exporters.unified_hf.verification.exclusion import engine_paths, why_excluded
from octavo.exporters.unified_hf.verification.formats import check_formats, check_shapes, check_transformers

_GROUP = 16  # of NVFP4, where the metadata name none


class UnifiedHfVerifier:
    """Holds unified Hugging Face checkpoints to what vLLM, SGLang and TensorRT-LLM read."""

    name = "unified_hf"

    def detect(self, directory: Path) -> bool:
        """Whether `directory` holds a checkpoint of this dialect."""
        return is_unified_hf(directory)

    def verify(self, directory: Path, consumer: str, trust_remote_code: bool) -> Iterator[Finding]:
        """Yield what `consumer` would find wrong; see `core.verification.verifier.Verifier`."""
        files = StoredFiles(directory)
        yield from files.unlisted()
        described = read_descriptions(directory, files.config)
        if consumer == "transformers":
            yield from check_transformers(next(iter(described.values())))
            return
        used = description_for(consumer, described)
        yield from check_descriptions(consumer, described, files.config)
        refusals = list(check_formats(consumer, used))
        yield from refusals
        if any(refusal.severity == "error" for refusal in refusals):
            return
        expected = expected_model(directory, files.names, trust_remote_code)
        yield from _check_layers(files, expected, used.metadata, consumer)
        yield from check_cache(files, expected, used.metadata.cache)


def _check_layers(
    files: StoredFiles, expected: ExpectedModel, metadata: Metadata, consumer: str
) -> Iterator[Finding]:
    modules = expected.linears | expected.routers
    groups = joined_layers(modules)
    joined = {part: group.name for group in groups for part in group.parts}
    left_out = _left_out(modules, joined, metadata, consumer)
    for group in groups:
        listed = [part for part in group.parts if part in left_out]
        if ".experts." not in group.name and 0 < len(listed) < len(group.parts):
            yield error(
                group.name, f"{', '.join(listed)} left out alone", f"all of {', '.join(group.parts)} left out, or none",
                "Quantize all of them or none: engines join them.",
            )  # fmt: skip
    schemes = {
        module: _algo(metadata, module)
        for module in sorted(modules - left_out.keys())
        if _algo(metadata, module) and f"{module}.weight" in expected.shapes
    }
    sizes = {module: {"group": metadata.group_size_of(module) or _GROUP} for module in schemes}
    rules = {module: _rules(algo.upper(), consumer) for module, algo in schemes.items()}
    extra = reader_table()["extra_tensors"][consumer]
    yield from check_tensors(files, expected, Reading(rules, left_out, sizes, extra, cache_scales(files)))
    yield from _check_stacks(files, expected)
    quantized = {m: algo for m, algo in schemes.items() if f"{m}.weight_scale" in files.names}
    shapes = {module: expected.shapes[f"{module}.weight"] for module in quantized}
    yield from check_shapes(consumer, quantized, shapes, joined)
    for group in groups:
        for shared in _shared_scales(consumer, {quantized.get(part, "").upper() for part in group.parts}):
            yield from unequal_scales(files, group, shared)


def _left_out(
    modules: frozenset[str], joined: Mapping[str, str], metadata: Metadata, consumer: str
) -> dict[str, str]:
    """Return why the reader leaves out modules, by module."""
    reasons = {
        module: why_excluded(consumer, module, engine_paths(module, joined), metadata.exclude)
        for module in modules
    }
    return {module: why for module, why in reasons.items() if why}


def _algo(metadata: Metadata, module: str) -> str:
    """Return the name of the scheme that the metadata say of a module; empty where they say none."""
    try:
        algo = metadata.quant_algo_of(module)
    except CheckpointError:  # a mixed checkpoint, or one of a cache alone, that does not name it
        return ""
    return scheme_named(algo, static_inputs=True, where=str(metadata.directory)).quant_algo


def _check_stacks(files: StoredFiles, expected: ExpectedModel) -> Iterator[Finding]:
    for stack in sorted(expected.stacks):
        if f"{stack}_weight_scale" in files.names:
            yield warning(
                stack, "quantized experts in one tensor", "a matrix for each expert and projection",
                "No reader of this dialect was seen to load that.",
            )  # fmt: skip


def _shared_scales(consumer: str, algos: set[str]) -> Iterator[SharedScale]:
    for row in reader_table()["shared_scales"]:
        if consumer in row["readers"] and algos and algos <= set(row["schemes"]):
            yield SharedScale(row["suffix"], row["readers"][consumer], row["effect"])


@cache
def _rules(algo: str, consumer: str) -> LayerRules:
    any_dims = consumer in reader_table()["any_dims"]
    return {
        suffix: replace(rule, any_dims=any_dims) for suffix, rule in layer_rules(_tensors()[algo]).items()
    }


@lru_cache(maxsize=1)
def _tensors() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("reader_tensors.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]


VERIFIER = UnifiedHfVerifier()
