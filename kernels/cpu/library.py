"""The compiled library: the installed one, that of the user's cache, or one compiled now; or why there is none."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from octavo.core.cache import cache_folder
from octavo.core.console import say
from octavo.kernels.cpu.build import BuildError, build, compiler_key, find_compiler, fresh, source_key

INSTALLED = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Library:
    """A loaded library, or why there is none.

    Attributes:
        handle: What ctypes loaded, or None.
        isa: The instruction set of this machine for which its functions are called: avx512, avx2, baseline.
        missing: Why there is none, or None.
    """

    handle: ctypes.CDLL | None
    isa: str
    missing: str | None

    def function(self, name: str, argtypes: Sequence[Any]) -> Callable[..., None]:
        """Return the function `name`, declared by OCTAVO_EXPORT, for this machine's instruction set."""
        return self.shared_function(f"{name}_{self.isa}", argtypes)

    def shared_function(self, name: str, argtypes: Sequence[Any]) -> Callable[..., None]:
        """Return a function that is compiled once for all instruction sets."""
        assert self.handle is not None  # noqa: S101 (asked for where nothing is missing)
        found = getattr(self.handle, name)
        found.argtypes, found.restype = list(argtypes), None
        return found  # type: ignore[no-any-return]


@cache
def library() -> Library:
    """Return the library, compiled first where there is none of these sources; says once if it cannot be had."""
    try:
        return _loaded(fresh(INSTALLED) or _cached())
    except (BuildError, OSError) as error:
        reason = str(error)
    say(f"CPU kernels are not there, the slower reference runs instead: {reason}", quiet=False)
    return Library(None, "", reason)


def _loaded(path: Path) -> Library:
    handle = ctypes.CDLL(str(path))
    handle.octavo_isa.restype = ctypes.c_char_p
    return Library(handle, handle.octavo_isa().decode(), None)


def _cached() -> Path:
    """Return the library in the user's cache, compiled into it if need be."""
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler found (CXX, c++, g++, clang++)")
    import fcntl  # not on Windows, where no compiler is looked for

    folder = cache_folder() / "cpu-kernels" / f"{source_key()}-{compiler_key(compiler)}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of processes that start together, one compiles
        found = fresh(folder)
        if found is None:
            say(f"compiling CPU kernels into {folder}, once", quiet=False)
            found = build(folder, compiler)
        return found
