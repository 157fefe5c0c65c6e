"""The tensors that a reader needs of one layer: names, dtypes, shapes and what their values must be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.core.verification.finding import Finding, error, warning
from octavo.core.verification.stored_files import EXPORT_AGAIN, StoredTensors
from octavo.core.verification.stored_values import Values, wrong_values

SCALAR = "scalar"
_SIZE = re.compile(r"(?P<base>\w+)(\*(?P<times>\w+))?((?P<divided>//?)(?P<by>\w+))?")


@dataclass(frozen=True)
class TensorRule:
    """One tensor of a layer.

    Attributes:
        dtypes: Those that the reader takes, as safetensors spells them.
        shape: Its dims, or `scalar` for one number of any shape up to [1]. A dim is a number or a size by name (`out`,
            `in`, `group`, `bits`), perhaps times and over another: `in/16` divides evenly, `out//128` rounds up.
        values: What they must be.
        optional: The reader does without it.
        any_dims: One number may have any number of dims.
    """

    dtypes: tuple[str, ...]
    shape: tuple[str, ...] | str
    values: Values
    optional: bool = False
    any_dims: bool = False


LayerRules = Mapping[str, TensorRule]
"""The tensors of a layer by suffix."""


def layer_rules(table: Mapping[str, Mapping[str, Any]]) -> LayerRules:
    """Return the rules of a table in YAML: {suffix: {dtype, shape, values, optional}}."""
    return {
        suffix: TensorRule(
            tuple([row["dtype"]] if isinstance(row["dtype"], str) else row["dtype"]),
            row["shape"] if row["shape"] == SCALAR else tuple(map(str, row["shape"])),
            row.get("values", "any"),
            row.get("optional", False),
        )
        for suffix, row in table.items()
    }


def check_layer(
    files: StoredTensors, module: str, rules: LayerRules, sizes: Mapping[str, int]
) -> Iterator[Finding]:
    """Yield what is wrong with a layer's tensors.

    Args:
        files: The checkpoint.
        module: The layer's name.
        rules: Its tensors.
        sizes: `out`, `in`, and other sizes that shapes name.
    """
    for suffix, rule in rules.items():
        name = f"{module}.{suffix}"
        if name in files.names:
            yield from _check_tensor(files, name, rule, sizes)
        elif not rule.optional:
            yield error(
                name,
                f"no such tensor{_similar(files, module, suffix, rules)}",
                f"{_dtypes(rule)} {_shown(rule.shape)}",
                EXPORT_AGAIN,
            )


def _similar(files: StoredTensors, module: str, suffix: str, rules: LayerRules) -> str:
    """Return which tensor of the layer may be the missing one under another name."""
    others = [name.removeprefix(f"{module}.") for name in files.names if name.startswith(f"{module}.")]
    similar = sorted(other for other in others if suffix in other and other not in rules)
    return f", but {module}.{similar[0]}" if similar else ""


def _check_tensor(
    files: StoredTensors, name: str, rule: TensorRule, sizes: Mapping[str, int]
) -> Iterator[Finding]:
    dtype, shape = files.dtype(name), files.shape(name)
    uneven = _uneven(rule.shape, sizes)
    if uneven:
        yield error(
            name, f"a layer with {uneven}", "sizes that divide evenly", "Leave this layer unquantized."
        )
        return
    expected = _resolved(rule.shape, sizes)
    may_be_scalar = expected is None or (rule.any_dims and set(expected) <= {1})
    fits = shape == expected or (may_be_scalar and shape in ((), (1,)))
    if dtype not in rule.dtypes or not fits:
        wanted = "[] or [1]" if expected is None else str(list(expected))
        yield error(name, f"{dtype} {list(shape)}", f"{_dtypes(rule)} {wanted}", EXPORT_AGAIN)
        return
    tensor = files.tensor(name)
    if wrong := wrong_values(tensor, rule.values):
        yield error(
            name, wrong, _EXPECTED[rule.values], "Calibrate and export again: these are no usable numbers."
        )
    elif rule.values == "scales" and (zeros := int((tensor.float() == 0).sum())):
        yield warning(
            name, f"{zeros} scales that are 0", "positive scales", "All values of these blocks are read as 0."
        )


_EXPECTED: dict[Values, str] = {
    "any": "any",
    "finite": "finite values",
    "codes": "codes of finite values",
    "number": "one positive number",
    "scales": "positive scales",
    "signed_scales": "finite scales other than 0",
    "exponents": "exponents from 0 to 254",
}


def _dtypes(rule: TensorRule) -> str:
    return " or ".join(rule.dtypes)


def _shown(shape: tuple[str, ...] | str) -> str:
    return shape if isinstance(shape, str) else f"[{', '.join(shape)}]"


def _resolved(shape: tuple[str, ...] | str, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """Return the dims as numbers, or None for one number of any shape."""
    return (
        None
        if shape == SCALAR
        else tuple(-(-dividend // divisor) for dividend, divisor, _ in _parsed(shape, sizes))
    )


def _uneven(shape: tuple[str, ...] | str, sizes: Mapping[str, int]) -> str:
    """Return which size is no multiple of what it is divided by, or an empty string."""
    parsed = [] if shape == SCALAR else _parsed(shape, sizes)
    odd = [(a, b) for a, b, divides_evenly in parsed if divides_evenly and a % b]
    return f"{odd[0][0]} features, no multiple of {odd[0][1]}" if odd else ""


def _parsed(shape: tuple[str, ...] | str, sizes: Mapping[str, int]) -> list[tuple[int, int, bool]]:
    """Return (dividend, divisor, whether it must divide evenly) of each dim."""
    matches = [_SIZE.fullmatch(dim) for dim in shape]
    return [
        (
            _number(match["base"], sizes) * _number(match["times"] or "1", sizes),
            _number(match["by"] or "1", sizes),
            match["divided"] == "/",
        )
        for match in matches
        if match is not None
    ]


def _number(word: str, sizes: Mapping[str, int]) -> int:
    return int(word) if word.isdigit() else sizes[word]
