"""Compiles the C++ sources of this folder into one library; plain Python, so that an install can run it, too.

Not by `torch.utils.cpp_extension`: without torch's headers the sources compile in seconds, in a build environment that
has no torch, and one library serves every version of torch. It has a plain C interface and is called by ctypes. Each
file of `src` is compiled for several instruction sets (`INSTRUCTION_SETS`), with the macro OCTAVO_ISA as the ending
of its names; the files of `src/base` are compiled once. The machine that runs the library picks (`octavo_isa`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "src"
LIBRARY = "octavo_cpu.so"
DIGEST = "octavo_cpu.digest"
# Without contraction a product and a sum round twice, as in the reference.
FLAGS = ("-O2", "-std=c++17", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
HIDDEN = "-fvisibility=hidden"
AVX2 = ("-mavx2", "-mf16c", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {"baseline": ()}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS |= {"avx2": AVX2, "avx512": AVX512}


class BuildError(Exception):
    """The sources could not be compiled; the message is for the user."""


def find_compiler() -> str | None:
    """Return the path of a C++ compiler: that of `CXX`, or else c++, g++ or clang++; None on Windows."""
    if sys.platform == "win32":
        return None
    names = (os.environ["CXX"],) if os.environ.get("CXX") else ("c++", "g++", "clang++")
    return next((found for found in map(shutil.which, names) if found), None)


def source_key() -> str:
    """Return the hash of sources, flags and machine; a library with another one is stale."""
    digest = hashlib.sha256(repr((FLAGS, HIDDEN, INSTRUCTION_SETS, sys.platform)).encode())
    for path in sorted(path for path in SOURCES.rglob("*") if path.suffix in (".cpp", ".h")):
        digest.update(f"{path.relative_to(SOURCES)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def compiler_key(compiler: str) -> str:
    """Return what changes when another compiler is installed."""
    path = Path(compiler).resolve()
    stat = path.stat()
    return hashlib.sha256(f"{path}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]


def build(folder: Path, compiler: str) -> Path:
    """Compile the library into `folder`, under a temporary name first, and return its path.

    Raises:
        BuildError: the compiler fails, with what it says.
        OSError: `folder` cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = source_key()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as name:
        scratch = Path(name)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(_run, _compilations(compiler, scratch)))
        library = _run([compiler, "-shared", "-pthread", *objects, "-ldl", "-o", str(scratch / LIBRARY)])
        (scratch / DIGEST).write_text(f"{key} {_digest(Path(library))}\n", encoding="ascii")
        for part in (DIGEST, LIBRARY):  # between the two, the old library is a stale one
            os.replace(scratch / part, folder / part)
    return folder / LIBRARY


def fresh(folder: Path) -> Path | None:
    """Return the library in `folder` if it is whole and was made of the sources that are here, else None."""
    library = folder / LIBRARY
    try:
        key, digest = (folder / DIGEST).read_text(encoding="ascii").split()
        is_fresh = key == source_key() and digest == _digest(library)
    except (OSError, ValueError):
        return None
    return library if is_fresh else None


def _compilations(compiler: str, scratch: Path) -> list[list[str]]:
    """Return a command for each object file, which is its last word."""
    command = [compiler, *FLAGS, HIDDEN, f"-I{SOURCES}", "-c"]
    once = [
        [*command, str(source), "-o", str(scratch / f"{source.stem}.o")]
        for source in sorted((SOURCES / "base").glob("*.cpp"))
    ]
    each = [
        [*command, *flags, f"-DOCTAVO_ISA={isa}", str(source), "-o", str(scratch / f"{source.stem}-{isa}.o")]
        for isa, flags in INSTRUCTION_SETS.items()
        for source in sorted(SOURCES.glob("*.cpp"))
    ]
    return each + once


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr.strip()}")
    return command[-1]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
