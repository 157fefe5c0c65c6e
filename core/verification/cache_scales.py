"""Scales of keys and values: which a reader waits for, and which nothing reads."""

from __future__ import annotations

from collections.abc import Iterator

from octavo.core.verification.expected_model import ExpectedModel
from octavo.core.verification.finding import Finding, error, warning
from octavo.core.verification.stored_files import EXPORT_AGAIN, StoredFiles
from octavo.core.verification.stored_values import wrong_values

_PLACES = ("{letter}_proj.{letter}_scale", "{letter}_scale", "qkv_proj.{letter}_scale", "attn.{letter}_scale")


def cache_scales(files: StoredFiles) -> set[str]:
    """Return the names of all scales of keys and values."""
    return {name for name in files.names if name.endswith((".k_scale", ".v_scale"))}


def check_cache(files: StoredFiles, expected: ExpectedModel, cache: str | None) -> Iterator[Finding]:
    """Yield missing, unread and unusable scales.

    Args:
        files: The checkpoint.
        expected: Its model.
        cache: The format that the metadata name, or None.
    """
    scales = cache_scales(files)
    if cache is None and scales:
        first = min(scales)
        yield warning(
            first, f"scales of keys and values ({len(scales)})", "a format of the cache in the metadata",
            "Write kv_cache_scheme and kv_cache_quant_algo: without them the cache is not quantized.",
        )  # fmt: skip
    for attention in sorted(expected.attention if cache is not None else ()):
        for letter in "kv":
            places = [f"{attention}.{place.format(letter=letter)}" for place in _PLACES]
            if not any(place in scales for place in places):
                yield warning(
                    places[0], "no such tensor", "one positive number", "Readers take 1: calibrate the cache."
                )
    for name in sorted(scales):
        if files.dtype(name) not in ("F32", "BF16", "F16") or files.shape(name) not in ((), (1,)):
            yield error(name, f"{files.dtype(name)} {list(files.shape(name))}", "F32 [] or [1]", EXPORT_AGAIN)
        elif wrong := wrong_values(files.tensor(name), "number"):
            yield error(name, wrong, "one positive number", "Calibrate and export again.")
