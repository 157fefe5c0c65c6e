"""How far a run is: one line for each part, and the same as JSON for programs."""

from __future__ import annotations

import json
import time
from pathlib import Path

from octavo.core.console import say
from octavo.core.errors import ConfigError


class Progress:
    """Tells the user, after each part, how much is done and how long the rest will take.

    Args:
        total: Number of parts.
        quiet: Print nothing.
        log: A file that gets a JSON line for each part, or None.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, total: int, quiet: bool, log: Path | None) -> None:
        self._total, self._quiet = total, quiet
        self._begin = self._last = time.monotonic()
        self._done = 0
        try:
            self._log = None if log is None else log.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{log} cannot be written: {error.strerror}; give another file to --log-json"
            ) from error

    def part(self, name: str, number: int, num_bytes: int) -> None:
        """Note that a part is written.

        Args:
            name: Its name.
            number: How many are, with those of a run before.
            num_bytes: Bytes of the source's tensors that it was made of.
        """
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._done += 1
        eta = (now - self._begin) / self._done * (self._total - number)
        speed = num_bytes / 1e6 / max(seconds, 1e-9)
        memory = anonymous_bytes()
        shown = f"{memory / 1e9:.2f} GB in memory" if memory is not None else ""
        say(
            f"{number}/{self._total} {name or 'outside of blocks'}: {seconds:.1f} s, {speed:.0f} MB/s, "
            f"{_duration(eta)} left, {shown}".rstrip(", "),
            self._quiet,
        )
        self._write(
            part=name, number=number, of=self._total, seconds=seconds, mb_per_second=speed, eta_seconds=eta,
            memory_bytes=memory,
        )  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()

    def _write(self, **fields: object) -> None:
        if self._log is not None:
            self._log.write(json.dumps({"time": time.time(), **fields}) + "\n")
            self._log.flush()


def anonymous_bytes() -> int | None:
    """Return the memory of this process that no file stands behind; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("RssAnon:")), None)
    return None if found is None else int(found.split()[1]) * 1024


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    )
