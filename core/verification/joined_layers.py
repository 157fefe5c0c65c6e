"""Layers that engines join (joined_layers.yaml): scales of which they keep one must be equal in the files."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from octavo.core.errors import listed
from octavo.core.verification.finding import Finding, Severity
from octavo.core.verification.stored_files import StoredFiles


@dataclass(frozen=True)
class JoinedLayer:
    """Layers that become one.

    Attributes:
        name: What the joined layer is called in engines, `model.layers.0.self_attn.qkv_proj`.
        parts: The layers.
    """

    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class SharedScale:
    """A scale of which an engine keeps one for all parts.

    Attributes:
        suffix: Its name in a layer.
        severity: What unequal ones are.
        effect: What the engine does with them; `requantizes` where it rounds weights to the largest.
        divides: Whether codes are divided by it, not multiplied.
    """

    suffix: str
    severity: Severity
    effect: str
    divides: bool = False


def joined_layers(modules: Collection[str]) -> list[JoinedLayer]:
    """Return the groups of `modules` that engines join, those with a single part left out."""
    groups: dict[str, list[str]] = {}
    for joined, words in _table().items():
        for word in words:
            for module in sorted(modules):
                outer, _, last = module.rpartition(".")
                if last == word:
                    groups.setdefault(f"{outer}.{joined}", []).append(module)
    return [JoinedLayer(name, tuple(parts)) for name, parts in groups.items() if len(parts) > 1]


def unequal_scales(files: StoredFiles, joined: JoinedLayer, shared: SharedScale) -> Iterator[Finding]:
    """Yield that the parts have different scales, with the size of the error."""
    names = [f"{part}.{shared.suffix}" for part in joined.parts]
    if not all(name in files.names and files.shape(name) in ((), (1,)) for name in names):
        return  # missing and mis-shaped ones are spoken of elsewhere
    values = [float(files.tensor(name).float()) for name in names]
    largest = max(values)
    if len(set(values)) == 1 or not all(0 < value < float("inf") for value in values):
        return
    apart = [
        _off(files, part, shared, value, largest)
        for part, value in zip(joined.parts, values, strict=True)
        if value != largest
    ]
    words = ", ".join(part.rpartition(".")[2] for part in joined.parts)
    yield Finding(
        shared.severity,
        f"{joined.name}.{shared.suffix}",
        f"unequal scales of layers that are joined: {', '.join(f'{value:.6g}' for value in values)}",
        f"one scale for {words}: the reader {shared.effect}. {listed(apart)}",
        "Export again with target=, or use `octavo convert … --target`.",
    )


def _off(files: StoredFiles, part: str, shared: SharedScale, scale: float, largest: float) -> str:
    leaf = part.rpartition(".")[2]
    if shared.effect.startswith("requantizes"):
        return f"{leaf} changes by {requantization_error(files.tensor(f'{part}.weight'), scale, largest):.2g}"
    factor = scale / largest if shared.divides else largest / scale
    return f"{leaf} is read {factor:.4g} times as large"


def requantization_error(codes: Tensor, scale: float, largest: float) -> float:
    """Return the relative L2 change of a weight when its E4M3 codes are rounded to another scale."""
    if codes.dtype != torch.float8_e4m3fn:
        return float("nan")
    values = codes.float() * scale
    rounded = (values / largest).to(torch.float8_e4m3fn).float() * largest
    return float((rounded - values).norm() / values.norm().clamp_min(1e-30))


@lru_cache(maxsize=1)
def _table() -> dict[str, list[str]]:
    import yaml

    text = Path(__file__).with_name("joined_layers.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]
