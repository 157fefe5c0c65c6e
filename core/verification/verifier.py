"""What a verifier is: the rules of one dialect's readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from octavo.core.verification.finding import Finding


class Verifier(Protocol):
    """Knows what the readers of one dialect need.

    Attributes:
        name: The dialect.
    """

    name: str

    def detect(self, directory: Path) -> bool:
        """Whether `directory` holds a checkpoint of this dialect, whole or not."""

    def verify(self, directory: Path, consumer: str, trust_remote_code: bool) -> Iterator[Finding]:
        """Yield what `consumer` would find wrong.

        Raises:
            CheckpointError: a file cannot be read; nothing further can be said.
        """
