"""The two descriptions of a checkpoint, and which of them a reader believes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError
from octavo.core.model.shard_reader import read_json
from octavo.core.verification.finding import Finding, error, warning
from octavo.exporters.unified_hf.metadata import MIXED
from octavo.exporters.unified_hf.metadata_reader import NESTED_FILE, Metadata, metadata_of

_MEND = "Write both files with the same content, as `octavo convert` does."


@dataclass(frozen=True)
class Description:
    """One description of a checkpoint.

    Attributes:
        file: The name of its file.
        data: What is in it: config.json's `quantization_config`, or hf_quant_config.json.
        metadata: What that says.
    """

    file: str
    data: Mapping[str, Any]
    metadata: Metadata

    @property
    def is_nested(self) -> bool:
        """Whether it has the shape of hf_quant_config.json, wherever it stands."""
        return "quantization" in self.data

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields that say how the checkpoint is quantized."""
        return self.data.get("quantization", self.data)  # type: ignore[no-any-return]


def read_descriptions(directory: Path, config: Mapping[str, Any]) -> dict[str, Description]:
    """Return the descriptions by file name.

    Raises:
        CheckpointError: one cannot be read, or is none.
    """
    found = {}
    inline = config.get("quantization_config")
    if isinstance(inline, dict):
        file = directory / "config.json"
        found[file.name] = Description(file.name, inline, metadata_of(inline, file, "quantization_config"))
    if (directory / NESTED_FILE).is_file():
        data = read_json(directory / NESTED_FILE)
        found[NESTED_FILE] = Description(
            NESTED_FILE, data, metadata_of(data, directory / NESTED_FILE, "quantization")
        )
    if not found:
        raise CheckpointError(f"{directory} describes no quantization in config.json or {NESTED_FILE}")
    return found


def description_for(consumer: str, found: Mapping[str, Description]) -> Description:
    """Return the description that a reader believes."""
    return found.get(reader_table()["described_in"][consumer]) or next(iter(found.values()))


def check_descriptions(
    consumer: str, found: Mapping[str, Description], config: Mapping[str, Any]
) -> Iterator[Finding]:
    """Yield what is wrong with the metadata themselves, whatever the tensors are."""
    used = description_for(consumer, found)
    yield from _check_method(consumer, used)
    yield from _check_only_file(consumer, used)
    yield from _check_agreement(consumer, used, found)
    if consumer == "vllm":
        yield from _check_vllm(used, config)


def _check_method(consumer: str, used: Description) -> Iterator[Finding]:
    if used.file == "config.json" and used.data.get("quant_method") != "modelopt":
        place = "config.json: quantization_config.quant_method"
        yield error(place, repr(used.data.get("quant_method")), "'modelopt'", "Set it: readers choose by it.")
    producer = used.data.get("producer")
    name = producer.get("name") if isinstance(producer, dict) else None
    if name != "modelopt":
        needed = used.file != "config.json" or used.metadata.quant_algo == MIXED
        finding = error if needed else warning
        yield finding(
            f"{used.file}: producer.name", repr(name), "'modelopt'", "Set it: three readers test it."
        )


def _check_only_file(consumer: str, used: Description) -> Iterator[Finding]:
    unknown = reader_table()["only_in_config"].get(consumer, ())
    if used.file == NESTED_FILE and used.metadata.quant_algo in unknown:
        needed = f"a description of {used.metadata.quant_algo}: {consumer} does not know it from {NESTED_FILE} alone"
        yield error("config.json: quantization_config", "none", needed, _MEND)


def _check_agreement(consumer: str, used: Description, found: Mapping[str, Description]) -> Iterator[Finding]:
    for other in found.values():
        for field, mine, theirs in _compared(used.metadata, other.metadata):
            if mine != theirs:
                yield warning(
                    f"{used.file} and {other.file}: {field}",
                    f"{mine!r} and {theirs!r}",
                    f"the same in both: {consumer} believes the first",
                    _MEND,
                )


def _compared(one: Metadata, other: Metadata) -> Iterator[tuple[str, Any, Any]]:
    yield "quant_algo", (one.quant_algo or "").upper(), (other.quant_algo or "").upper()
    yield "excluded modules", sorted(one.exclude), sorted(other.exclude)
    yield "format of the cache", one.cache, other.cache
    yield "quantized_layers", dict(one.layers), dict(other.layers)
    if one.group_size is not None and other.group_size is not None:
        yield "group_size", one.group_size, other.group_size


def _check_vllm(used: Description, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what vLLM's own parsing makes of fields that look decorative."""
    algo = (used.metadata.quant_algo or "").upper()
    needed = {
        "NVFP4": ("group_size", "kv_cache_quant_algo", "exclude_modules"),
        "MXFP8": ("kv_cache_quant_algo", "exclude_modules"),
    }
    missing = [field for field in needed.get(algo, ()) if used.is_nested and field not in used.fields]
    if missing:
        yield error(
            f"{used.file}: quantization", f"no {', '.join(missing)}", "all of them, null allowed", _MEND
        )
    groups = used.fields.get("config_groups")
    if algo == "NVFP4" and groups and not any(group.get("input_activations") for group in groups.values()):
        yield error(
            f"{used.file}: config_groups", "no input_activations", "the format of inputs: vLLM takes NVFP4 without it "
            "for W4A16_NVFP4", _MEND,
        )  # fmt: skip
    if (
        not used.is_nested
        and used.fields.get("kv_cache_quant_algo")
        and not used.fields.get("kv_cache_scheme")
    ):
        yield warning(
            f"{used.file}: kv_cache_quant_algo", repr(used.fields["kv_cache_quant_algo"]), "kv_cache_scheme, which is "
            "read in this shape", "The cache is not quantized.",
        )  # fmt: skip
    dtype = config.get("dtype") or config.get("torch_dtype")
    if algo == "MXFP8" and dtype != "bfloat16":
        yield error(
            "config.json: dtype",
            repr(dtype),
            "'bfloat16', the only one for MXFP8",
            "Export a bfloat16 model.",
        )


@lru_cache(maxsize=1)
def reader_table() -> dict[str, Any]:
    """Return readers.yaml."""
    import yaml

    text = Path(__file__).with_name("readers.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]
