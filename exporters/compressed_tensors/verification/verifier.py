"""The verifier of this dialect, as core knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.verification.cache_scales import cache_scales, check_cache
from octavo.core.verification.expected_model import ExpectedModel, expected_model
from octavo.core.verification.finding import Finding, error
from octavo.core.verification.joined_layers import JoinedLayer, SharedScale, joined_layers, unequal_scales
from octavo.core.verification.layer_rules import SCALAR, LayerRules, layer_rules
from octavo.core.verification.stored_files import EXPORT_AGAIN, StoredFiles
from octavo.core.verification.tensor_checks import Reading, check_tensors
from octavo.exporters.compressed_tensors.reader import holds_compressed_tensors
from octavo.exporters.compressed_tensors.verification.groups import (
    Group,
    check_experts,
    check_group,
    group_of,
    matches,
    read_groups,
)

_PLACE = "config.json: quantization_config"


class CompressedTensorsVerifier:
    """Holds compressed-tensors checkpoints to what vLLM, SGLang and transformers read."""

    name = "compressed_tensors"

    def detect(self, directory: Path) -> bool:
        """Whether `directory` holds a checkpoint of this dialect."""
        return holds_compressed_tensors(directory)

    def verify(self, directory: Path, consumer: str, trust_remote_code: bool) -> Iterator[Finding]:
        """Yield what `consumer` would find wrong; see `core.verification.verifier.Verifier`."""
        files = StoredFiles(directory)
        yield from files.unlisted()
        config = files.config["quantization_config"]
        groups = read_groups(config)
        refusals = list(_check_config(config, groups, consumer))
        yield from refusals
        if any(refusal.severity == "error" for refusal in refusals):
            return
        expected = expected_model(directory, files.names, trust_remote_code)
        yield from _check_layers(files, expected, config, groups, consumer)
        yield from check_cache(files, expected, "FP8" if config.get("kv_cache_scheme") else None)


def _check_config(config: Mapping[str, Any], groups: list[Group], consumer: str) -> Iterator[Finding]:
    if config.get("quantization_status", "compressed") != "compressed":
        yield error(
            f"{_PLACE}.quantization_status", repr(config["quantization_status"]), "'compressed'",
            "Set it: readers build the packed layout for no other.",
        )  # fmt: skip
    sparsity = config.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("targets"):
        yield error(
            f"{_PLACE}.sparsity_config", "targets", "none: this layout is no longer read", "Leave it out."
        )
    for group in groups:
        yield from check_group(group, consumer, _readers()["argument_keys"], list(_tensors()["codes"]))


def _check_layers(
    files: StoredFiles,
    expected: ExpectedModel,
    config: Mapping[str, Any],
    groups: list[Group],
    consumer: str,
) -> Iterator[Finding]:
    ignore = config.get("ignore") or []
    modules = expected.linears | (expected.routers if consumer != "transformers" else frozenset())
    patterns = {module: matches(module, ignore) for module in modules}
    left_out = {m: f"{p!r} is in the ignore list" for m, p in patterns.items() if p}
    found = {m: group_of(m, True, groups) for m in sorted(modules - left_out.keys())}
    quantized = {module: group for module, group in found.items() if group is not None}
    joins = joined_layers(modules) if consumer != "transformers" else []
    for name in sorted({group.name for module, group in quantized.items() if ".experts." in module}):
        yield from check_experts(next(group for group in groups if group.name == name), consumer)
    for joined in joins:
        yield from _check_joined(joined, quantized)
    reading = Reading(
        {module: _rules(group, consumer) for module, group in quantized.items()},
        {**left_out, **dict.fromkeys(modules - quantized.keys() - left_out.keys(), "no group has it")},
        {module: _sizes(group) for module, group in quantized.items()},
        _readers()["extra_tensors"][consumer],
        cache_scales(files),
        "Add it to the ignore list.",
    )
    yield from check_tensors(files, expected, reading)
    for module, group in quantized.items():
        if group.format == "pack-quantized":
            yield from _check_weight_shape(files, module, expected.shapes[f"{module}.weight"])
    for joined in joins:
        for shared in _shared_scales(
            consumer, joined, {quantized[p].format for p in joined.parts if p in quantized}
        ):
            yield from unequal_scales(files, joined, shared)


def _check_joined(joined: JoinedLayer, quantized: Mapping[str, Group]) -> Iterator[Finding]:
    """Yield that the parts of a joined layer are in several groups, or in none and one."""
    names = {part: quantized[part].name if part in quantized else "none" for part in joined.parts}
    if len(set(names.values())) > 1:
        shown = ", ".join(f"{part}: {name}" for part, name in names.items())
        yield error(joined.name, f"groups {shown}", "one group for all of them", "Engines join these layers.")


def _rules(group: Group, consumer: str) -> LayerRules:
    """Return the tensors that a layer of a group has; transformers wants [1] where others take any one number."""
    table = {**_tensors()["codes"][group.format]}
    table["weight_scale"] = _tensors()["scales"].get(group.strategy, _tensors()["scales"]["group"])
    if not group.weights.get("symmetric", True):
        table |= _tensors()["zero_points"]
    if group.inputs and group.inputs.get("dynamic") in (None, False, "local"):
        table |= _tensors()["inputs"].get(str(group.inputs.get("strategy", "tensor")), {})
    rules = layer_rules(table)
    if consumer != "transformers":
        return rules
    return {
        suffix: replace(rule, shape=("1",)) if rule.shape == SCALAR else rule
        for suffix, rule in rules.items()
    }


def _sizes(group: Group) -> dict[str, int]:
    rows, columns = group.weights.get("block_structure") or (1, 1)
    length = group.length or 1
    return {"group": length, "bits": group.weights.get("num_bits", 8), "rows": rows, "columns": columns}


def _check_weight_shape(files: StoredFiles, module: str, shape: tuple[int, ...]) -> Iterator[Finding]:
    name = f"{module}.weight_shape"
    if name in files.names and files.shape(name) == (2,) and files.tensor(name).tolist() != list(shape):
        yield error(name, str(files.tensor(name).tolist()), str(list(shape)), EXPORT_AGAIN)


def _shared_scales(consumer: str, joined: JoinedLayer, formats: set[str]) -> Iterator[SharedScale]:
    special = _readers()["shared_scales_of_experts"] if ".experts." in joined.name else []
    rows = [*special, *_readers()["shared_scales"]]
    seen = set()
    for row in rows:
        if (
            consumer in row["readers"]
            and formats
            and formats <= set(row["formats"])
            and row["suffix"] not in seen
        ):
            seen.add(row["suffix"])
            yield SharedScale(
                row["suffix"], row["readers"][consumer], row["effect"], row.get("divides", False)
            )


@lru_cache(maxsize=1)
def _tensors() -> dict[str, Any]:
    return _table("reader_tensors.yaml")


@lru_cache(maxsize=1)
def _readers() -> dict[str, Any]:
    return _table("readers.yaml")


def _table(name: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


VERIFIER = CompressedTensorsVerifier()
