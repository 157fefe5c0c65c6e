"""Which launch of a kernel is used: a default that never changes, or on request the fastest one, measured once.

`OCTAVO_AUTOTUNE=1` measures the candidates and keeps the choice in a file under the user's cache directory, one file
for each kernel, device and shape bucket. Without it no file is read, so that the same call does the same work on
every machine of a kind. Only products depend on the choice, by the order of their sums.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from octavo.core.errors import ConfigError

VARIABLE = "OCTAVO_AUTOTUNE"
Launch = Mapping[str, int]  # tile lengths, num_warps, num_stages: what a kernel is launched with

_chosen: dict[tuple[str, tuple[tuple[str, int], ...]], Launch] = {}


@dataclass(frozen=True)
class Problem:
    """What one choice serves.

    Attributes:
        kernel: Name of the kernel.
        source: Hash of its source and of all that it calls (`JITFunction.cache_key`).
        variant: What else it is compiled for: formats, dtypes.
        bucket: Lengths of its tensors, each rounded up to a power of two.
        device: Name and compute capability.
        triton: Version of Triton.
    """

    kernel: str
    source: str
    variant: str
    bucket: tuple[int, ...]
    device: str
    triton: str

    @property
    def file_name(self) -> str:
        """Name of the file that holds the choice."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.kernel}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def problem(kernel: Any, variant: str, lengths: Sequence[int], device: torch.device) -> Problem:
    """Return what a choice for `kernel` (a `triton.JITFunction`) with tensors of `lengths` on `device` serves."""
    import triton

    major, minor = torch.cuda.get_device_capability(device)
    name = f"{torch.cuda.get_device_name(device)} {major}.{minor}"
    return Problem(kernel.__name__, kernel.cache_key, variant, bucket(lengths), name, str(triton.__version__))


def bucket(lengths: Sequence[int]) -> tuple[int, ...]:
    """Return each length rounded up to a power of two; 0 stays 0."""
    return tuple(1 << (length - 1).bit_length() if length else 0 for length in lengths)


def tunes() -> bool:
    """Return whether candidates are measured: `OCTAVO_AUTOTUNE` is 1, and no CUDA graph is being captured.

    Raises:
        ConfigError: the variable has another value than 0, 1 or nothing.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ConfigError(f"{VARIABLE}={value!r}; expected 1 to measure launches of kernels, or 0")
    return value == "1" and not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def chosen(
    candidates: Sequence[Launch],
    what: Callable[[], Problem],
    run: Callable[[Launch], object],
    measure: Callable[[Callable[[], object]], float] | None = None,
) -> Launch:
    """Return the launch to use: the first candidate, or the fastest one where launches are measured.

    Args:
        candidates: The default first, at least one.
        what: Returns the problem; called only where launches are measured.
        run: Runs the kernel with a launch, on outputs that may be overwritten.
        measure: Returns the milliseconds that a call takes; None is `milliseconds`.

    Raises:
        ConfigError: as `tunes`.
    """
    if not tunes() or len(candidates) == 1:
        return candidates[0]
    served = what()
    key = served.file_name, tuple(item for one in candidates for item in sorted(one.items()))
    if key not in _chosen:
        path = cache_directory() / served.file_name
        known = _read(path, served, candidates)
        if known is None:
            known = _fastest(candidates, run, measure or milliseconds)
            _write(path, served, known)
        _chosen[key] = known
    return _chosen[key]


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of `call` on the device, with a cold cache; infinity if it needs more than there is."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return float(do_bench(call, return_mode="median"))
    except OutOfResources:
        return float("inf")


def cache_directory() -> Path:
    """Return the folder of the files: `octavo/triton` under `$XDG_CACHE_HOME`, or under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "octavo" / "triton"


def _fastest(
    candidates: Sequence[Launch],
    run: Callable[[Launch], object],
    measure: Callable[[Callable[[], object]], float],
) -> Launch:
    times = [measure(lambda one=one: run(one)) for one in candidates]  # type: ignore[misc]
    return candidates[times.index(min(times))]


def _read(path: Path, served: Problem, candidates: Sequence[Launch]) -> Launch | None:
    """Return the launch that `path` holds for this problem; None if there is none that still exists."""
    try:
        data = json.loads(path.read_text())
        problem_read, launch = data["problem"], data["launch"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _note(f"{path} holds no launch of a kernel ({error!r})")
        return None
    if problem_read != json.loads(json.dumps(asdict(served))):
        _note(f"{path} is about another problem, {problem_read!r}")
        return None
    found = next((one for one in candidates if dict(one) == launch), None)
    if found is None:
        _note(f"{path} holds the launch {launch!r}, which is none of today's candidates")
    return found


def _write(path: Path, served: Problem, launch: Launch) -> None:
    text = json.dumps({"problem": asdict(served), "launch": dict(launch)}, indent=1)
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        warnings.warn(f"the choice of a launch is not kept: {error}", stacklevel=2)


def _note(text: str) -> None:
    warnings.warn(f"{text}; the candidates are measured again", stacklevel=2)
