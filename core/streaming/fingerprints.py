"""What a run is of: its recipe, its source, its data and the programs that it runs with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from octavo.core.calibration.statistics.fingerprint import DataHash
from octavo.core.errors import ConfigError, ExportError
from octavo.core.streaming.source_headers import SourceHeaders

_SAMPLES, _SAMPLE = 64, 4096


def fingerprints(
    headers: SourceHeaders, recipe: Mapping[str, Any], data: Sequence[Any] | None
) -> dict[str, str]:
    """Return {what: its fingerprint}.

    Args:
        headers: The source.
        recipe: What decides what is written, JSON-ready.
        data: Batches of calibration data.
    """
    from importlib.metadata import version  # for these alone

    found = {name: _shown(value) for name, value in recipe.items()}
    found["octavo"], found["torch"] = version("octavo"), torch.__version__
    found["calibration data"] = _data_digest(data)
    found["config.json of the source"] = _digest((headers.directory / "config.json").read_bytes())
    for shard, digest in headers.digests.items():
        found[f"{shard} of the source"] = f"{digest}, samples {_sampled(headers, shard)}"
    return found


def check_same(before: Mapping[str, str], now: Mapping[str, str], where: str) -> None:
    """Refuse to go on with a run that is another one.

    Raises:
        ExportError: they differ; the first difference is named, with both sides.
    """
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if old != new:
            raise ExportError(
                f"{where} is of another run: its {name} was {_cut(old)}, now it is {_cut(new)}. Go on with that, or "
                "start again with overwrite=True (--overwrite), or in another folder"
            )


def _data_digest(data: Sequence[Any] | None) -> str:
    if data is None:
        return "none"
    if callable(data):
        raise ConfigError("streaming takes calibration data as a list of batches; found a function")
    seen = DataHash()
    for batch in data:
        seen.add(batch)
    return f"{len(data)} batches, {seen.digest()}"


def _sampled(headers: SourceHeaders, shard: str) -> str:
    """Return a hash of some pieces of a file, evenly spread."""
    path, seen = headers.directory / shard, hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(max(0, (size - _SAMPLE) * number // (_SAMPLES - 1)))
            seen.update(file.read(_SAMPLE))
    return seen.hexdigest()[:16]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _cut(text: str, length: int = 160) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({_digest(text.encode())})"
