"""What TensorRT-LLM says of each kind of model (families.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.errors import ExportError, nearest


@dataclass(frozen=True)
class Family:
    """One kind of model; the fields are those of families.yaml."""

    decoder: str
    norm: str
    norm_adds_one: bool = False
    transposed: bool = False
    hidden_act: str = ""
    shares_head: bool = False
    skipped_positions: int = 0
    top_k_sums_to_one: Any = True
    has_peer: bool = True
    names: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    reader: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, Any] = field(default_factory=dict)

    def has_shared_head(self, config: Mapping[str, Any]) -> bool:
        """Whether files of a model with this config hold no head: its token embedding is used as one."""
        return self.shares_head and bool(config.get("tie_word_embeddings", True))

    def reader_fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of config.json that the peer does not write as the reader needs them."""
        return {name: _value(entry, config) for name, entry in self.reader.items()}

    def sums_to_one(self, config: Mapping[str, Any]) -> bool:
        """Whether the router's weights of the chosen experts are made to add up to 1."""
        return bool(_value(self.top_k_sums_to_one, config))

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a variant of the family that TensorRT-LLM does not compute.

        Raises:
            ExportError: the config says something else than the family needs; each such field is named.
        """
        expected = {name: _value(entry, config) for name, entry in self.needs.items()}
        wrong = [
            f"{name} is {config.get(name)!r} instead of {value!r}"
            for name, value in expected.items()
            if config.get(name) != value
        ]
        if wrong:
            raise ExportError(
                f"TensorRT-LLM computes only one variant of models of type {config.get('model_type')!r}, and in this "
                f"one {'; '.join(wrong)}; use export_hf_checkpoint"
            )


def family_for(config: Mapping[str, Any], decoder_type: str | None) -> Family:
    """Return the family of a model.

    Args:
        config: Its hyperparameters, as in the framework's config.json.
        decoder_type: What the user says it is, in the peer's words, or None.

    Raises:
        ExportError: the decoder type or the model's type is unknown, they do not go together, or TensorRT-LLM does
            not compute this variant.
    """
    model_type = str(config.get("model_type"))
    families = _families()
    decoders = sorted({family.decoder for family in families.values()})
    if decoder_type is not None and decoder_type not in decoders:
        raise ExportError(
            f"unknown decoder type {decoder_type!r}; known: {', '.join(decoders)}.{nearest(decoder_type, decoders)}"
        )
    if model_type not in families:
        raise ExportError(
            f"TensorRT-LLM's names for models of type {model_type!r} are not known; known are "
            f"{', '.join(families)}.{nearest(model_type, families)} export_hf_checkpoint writes any model, which "
            "TensorRT-LLM's PyTorch backend reads"
        )
    family = families[model_type]
    if decoder_type not in (None, family.decoder):
        raise ExportError(
            f"decoder type {decoder_type!r} is not that of models of type {model_type!r}, which are written as "
            f"{family.decoder!r}; leave decoder_type out"
        )
    family.check(config)
    return family


def family_of(model_type: str) -> Family:
    """Return the family of a model type that is known to have one."""
    return _families()[model_type]


@lru_cache(maxsize=1)
def _families() -> dict[str, Family]:
    import yaml

    rows = yaml.safe_load(Path(__file__).with_name("families.yaml").read_text(encoding="utf-8"))
    return {model_type: Family(**row) for model_type, row in rows.items()}


def _value(entry: Any, config: Mapping[str, Any]) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    found = config.get(entry["of"], entry.get("else"))
    return entry["as"][found] if "as" in entry else found
