"""Whether a reader knows the formats that the metadata name (targets.yaml)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from octavo.core.model.exporter import Verdict
from octavo.core.model.vision_towers import tower_verdicts
from octavo.core.verification.finding import Finding, Severity, error
from octavo.exporters.unified_hf.metadata import MIXED
from octavo.exporters.unified_hf.schemes import scheme_named
from octavo.exporters.unified_hf.targets import (
    cache_name_verdict,
    scheme_mixture_verdict,
    scheme_shape_verdict,
    scheme_verdict,
    transformers_verdict,
)
from octavo.exporters.unified_hf.verification.description import Description, reader_table

_ADVICE = "Write it in a form that this reader knows: `octavo convert SRC DST --target {consumer}`."


def check_transformers(used: Description) -> Iterator[Finding]:
    """Yield that transformers does not read this dialect."""
    yield from refused_or_unknown(
        f"{used.file}: quant_method",
        "'modelopt'",
        "a dialect that is read",
        transformers_verdict(),
        "transformers",
    )


def check_formats(consumer: str, used: Description) -> Iterator[Finding]:
    """Yield the schemes, their mixture and the format of the cache that the reader does not load, or might not.

    Raises:
        CheckpointError: the metadata name a scheme that nobody knows.
    """
    metadata = used.metadata
    algos: dict[str, int | None] = {}
    for module in metadata.layers or ("",):
        algo = metadata.layers[module]["quant_algo"] if module else metadata.quant_algo
        if algo is not None and (module or algo.upper() != MIXED):
            known = scheme_named(algo, static_inputs=True, where=used.file).quant_algo
            algos.setdefault(known, metadata.group_size_of(module))
    for algo, length in algos.items():
        verdict = scheme_verdict(consumer, algo, length)
        yield from refused_or_unknown(
            f"{used.file}: quant_algo", repr(algo), "a format it loads", verdict, consumer
        )
        if verdict.status != "refused":
            yield from _check_spelling(consumer, used, algo)
    if (metadata.quant_algo or "").upper() == MIXED:
        verdict = (
            scheme_mixture_verdict(consumer, algos) if algos else Verdict("refused", "no quantized_layers")
        )
        found = f"{MIXED} of {', '.join(algos) or 'nothing'}"
        yield from refused_or_unknown(
            f"{used.file}: quant_algo", found, "a mixture it loads", verdict, consumer
        )
    if metadata.cache is not None:
        verdict = cache_name_verdict(consumer, metadata.cache)
        yield from refused_or_unknown(
            f"{used.file}: format of the cache", repr(metadata.cache), "a format it loads", verdict, consumer
        )


def _check_spelling(consumer: str, used: Description, algo: str) -> Iterator[Finding]:
    """Yield that a scheme is spelled in other letters than the dialect's, where the reader compares these."""
    named = {used.metadata.quant_algo, *(layer["quant_algo"] for layer in used.metadata.layers.values())}
    other = [name for name in named if name and name.upper() == algo.upper() and name != algo]
    if other and consumer in reader_table()["case_sensitive"]:
        yield error(
            f"{used.file}: quant_algo", repr(other[0]), repr(algo), f"{consumer} compares it as it is."
        )


def check_shapes(
    consumer: str,
    schemes: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    joined: Mapping[str, str],
) -> Iterator[Finding]:
    """Yield the layers whose shape or place in the model the reader has no form for.

    Args:
        consumer: The reader.
        schemes: The scheme of each quantized module.
        shapes: Shape [out, in] of its weight.
        joined: The joined layer that a module is part of, by module.
    """
    for module, scheme in schemes.items():
        is_expert = ".experts." in module
        shape = (1, *shapes[module]) if is_expert else shapes[module]
        verdict = scheme_shape_verdict(consumer, scheme, shape, module in joined)
        where = "an expert" if is_expert else "a layer"
        yield from refused_or_unknown(
            f"{module}.weight",
            f"{where} {list(shapes[module])} in {scheme}",
            "one that it loads",
            verdict,
            consumer,
        )
    for verdict, names in tower_verdicts("unified_hf", consumer, schemes).items():
        for name in names:
            yield from refused_or_unknown(
                f"{name}.weight", "a quantized vision tower", "an unquantized one", verdict, consumer
            )


def refused_or_unknown(
    place: str, found: str, expected: str, verdict: Verdict, consumer: str
) -> Iterator[Finding]:
    """Yield a finding unless the reader loads it."""
    if verdict.status == "loads":
        return
    severity: Severity = "error" if verdict.status == "refused" else "warning"
    needed = f"{expected} ({consumer}: {verdict.status}; {verdict.evidence})"
    advice = _ADVICE.format(consumer=consumer) if severity == "error" else "Try it before you rely on it."
    yield Finding(severity, place, found, needed, advice)
