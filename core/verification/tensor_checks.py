"""Every tensor that a reader waits for is there, and nothing that it would choke on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from octavo.core.verification.expected_model import ExpectedModel
from octavo.core.verification.finding import Finding, Severity, error, warning
from octavo.core.verification.layer_rules import LayerRules, check_layer
from octavo.core.verification.stored_files import EXPORT_AGAIN, StoredFiles
from octavo.core.verification.stored_values import wrong_values

FLOATS = ("F32", "BF16", "F16")
_DERIVED = ("rotary_emb.inv_freq", "masked_bias")  # what readers compute themselves and skip in files
_LATER_LAYERS = "mtp"


@dataclass(frozen=True)
class Reading:
    """How a reader takes a checkpoint, by its metadata.

    Attributes:
        layers: The tensors that it needs of each module that it takes as quantized.
        left_out: Why it takes other modules as unquantized, where the metadata says so.
        sizes: Sizes that shapes name beside `out` and `in`, by module.
        others: Further tensors that it takes.
        extra: What a tensor is to it that it has no place for.
        advice: How a module that is quantized in the metadata only is left out there.
    """

    layers: Mapping[str, LayerRules]
    left_out: Mapping[str, str]
    sizes: Mapping[str, Mapping[str, int]]
    extra: Severity
    others: Collection[str] = field(default=())
    advice: str = "List it among the excluded modules."


def check_tensors(files: StoredFiles, expected: ExpectedModel, reading: Reading) -> Iterator[Finding]:
    """Yield tensors that are missing, extra, of another dtype or shape, or hold unusable values."""
    taken = {name for name in reading.others if name in files.names}
    for name, shape in expected.shapes.items():
        module = name.removesuffix(".weight")
        rules = reading.layers.get(module) if name.endswith(".weight") else None
        taken |= {f"{module}.{suffix}" for suffix in rules or ()} | {name}
        if name not in files.names and _same_stored(files, expected, name):
            continue
        if rules is None:
            yield from _check_plain(files, name, shape, expected, reading)
            if _is_quantized(files, module):
                taken |= set(_beside(files, module))
        elif not _is_quantized(files, module) and name in files.names:
            yield _quantized_nowhere(files, module, expected, reading)
        else:
            sizes = {"out": shape[0], "in": shape[-1], **reading.sizes.get(module, {})}
            yield from check_layer(files, module, rules, sizes)
    yield from _check_tied(files, expected)
    yield from _extra(files, files.names - taken, reading)


def _check_plain(
    files: StoredFiles, name: str, shape: tuple[int, ...], expected: ExpectedModel, reading: Reading
) -> Iterator[Finding]:
    """Yield what is wrong with a tensor that the reader takes as it is."""
    module = name.removesuffix(".weight")
    if name in expected.stacks and _is_quantized(files, name):
        return  # experts in one tensor: the dialect speaks of them
    if name not in files.names and not _is_quantized(files, module):
        yield error(name, "no such tensor", f"a float tensor {list(shape)}", EXPORT_AGAIN)
        return
    if _is_quantized(files, module):
        why = reading.left_out.get(module, "the metadata does not say that it is quantized")
        yield error(
            name, "a quantized weight", f"an unquantized one: {why}", "Mend the metadata, or export again."
        )
        return
    dtype, found = files.dtype(name), files.shape(name)
    if dtype not in FLOATS or found not in (shape, tuple(reversed(shape)) if len(shape) == 2 else shape):
        yield error(name, f"{dtype} {list(found)}", f"a float tensor {list(shape)}", EXPORT_AGAIN)
    elif wrong := wrong_values(files.tensor(name), "finite"):
        yield error(name, wrong, "finite values", EXPORT_AGAIN)


def _same_stored(files: StoredFiles, expected: ExpectedModel, name: str) -> bool:
    """Whether the files hold another name of the parameter: a tied head is stored once."""
    return any(other in files.names for other in expected.same.get(name, ()))


def _check_tied(files: StoredFiles, expected: ExpectedModel) -> Iterator[Finding]:
    """Yield tensors that are one parameter in the model and differ in the files: readers use one of them."""
    for group in sorted({tuple(sorted(group)) for group in expected.same.values() if len(group) > 1}):
        last, *others = [name for name in group if name in files.names] or [""]
        if any(not files.tensor(last).float().equal(files.tensor(other).float()) for other in others):
            needed = f"the same values as {', '.join(others)}: the config ties them"
            yield error(last, "other values", needed, "Untie them in config.json, or leave this tensor out.")


def _quantized_nowhere(files: StoredFiles, module: str, expected: ExpectedModel, reading: Reading) -> Finding:
    """Return that a module which the metadata takes as quantized holds a plain weight."""
    finding = error if module in expected.linears else warning
    found = f"an unquantized weight ({files.dtype(f'{module}.weight')})"
    needed = f"a quantized one with {', '.join(reading.layers[module])}: the metadata leaves this module in"
    return finding(f"{module}.weight", found, needed, reading.advice)


def _is_quantized(files: StoredFiles, module: str) -> bool:
    """Whether a module's weight is codes in the files, or has anything beside it that quantized weights have."""
    weight = f"{module}.weight"
    if weight in files.names:
        return files.dtype(weight) not in FLOATS or f"{weight}_scale" in files.names
    return any(
        name in files.names for name in (f"{weight}_packed", f"{weight}_scale", f"{module}_weight_scale")
    )


def _beside(files: StoredFiles, module: str) -> list[str]:
    """Return the tensors of a module, or those that belong to a stack of experts of that name."""
    return [n for n in files.names if n.rpartition(".")[0] == module or n.startswith(f"{module}_")]


def _extra(files: StoredFiles, names: Collection[str], reading: Reading) -> Iterator[Finding]:
    for name in sorted(names):
        if name.endswith(_DERIVED):
            continue
        if _LATER_LAYERS in name.split("."):
            yield warning(
                name, "a tensor of layers that predict several tokens", "layers of the model that config.json names",
                "Nothing is checked of it.",
            )  # fmt: skip
            continue
        advice = "Remove it, or export again: nothing reads what it says."
        yield Finding(
            reading.extra, name, f"{files.dtype(name)} {list(files.shape(name))}", "no such tensor", advice
        )
