"""Which layers a reader leaves unquantized, as it matches the excluded modules of the metadata.

vLLM looks for an exact name, then for a pattern that is *part of* the path, then matches globs, always against the
path of the layer that it builds (`qkv_proj`, `experts`). SGLang matches names at the borders of paths, and globs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase


def engine_paths(module: str, joined: Mapping[str, str]) -> str:
    """Return the path of the layer that an engine builds of `module`: a joined one, or all experts of a layer."""
    experts, found, _ = module.partition(".experts.")
    return f"{experts}.experts" if found else joined.get(module, module)


def why_excluded(consumer: str, module: str, path: str, patterns: Sequence[str]) -> str:
    """Return why a reader leaves `module` unquantized, or an empty string.

    Args:
        consumer: The reader.
        module: The module's name in the checkpoint.
        path: The layer that the engine builds of it.
        patterns: The excluded modules of the metadata.
    """
    if module in patterns or path in patterns:
        return "it is listed as excluded"
    if path.endswith(".experts"):
        listed = [pattern for pattern in patterns if path in pattern]
        if listed:
            return f"{listed[0]!r} is listed as excluded, which stands for all experts of its layer"
    for matches, how in _MATCHES[consumer]:
        for pattern in patterns:
            if matches(path, pattern):
                return f"the excluded {pattern!r} {how} {path!r}"
    return ""


def _is_part(path: str, pattern: str) -> bool:
    return pattern in path


def _is_path_above(path: str, pattern: str) -> bool:
    return path.startswith(f"{pattern}.")


def _is_glob_of_a_word(path: str, pattern: str) -> bool:
    return "*" in pattern and any(fnmatchcase(word, pattern) for word in (path, *path.split(".")))


_Match = tuple[Callable[[str, str], bool], str]
_MATCHES: dict[str, tuple[_Match, ...]] = {
    "vllm": ((_is_part, "is part of the path"), (fnmatchcase, "matches")),
    "sglang": ((_is_path_above, "is above"), (_is_glob_of_a_word, "matches")),
    "trtllm": ((fnmatchcase, "matches"),),
}
