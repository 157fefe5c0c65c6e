"""Errors about a quantizer that say which one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from octavo.core.errors import ConfigError, ShapeError, UnsupportedError


@contextmanager
def naming(quantizer: str) -> Iterator[None]:
    """Put the full name of a quantizer before what is wrong with its attributes.

    Raises:
        ConfigError: they are wrong, or do not fit the shape.
        UnsupportedError: they are not available.
    """
    try:
        yield
    except (ConfigError, UnsupportedError) as error:
        raise type(error)(f"{quantizer}: {error}") from error
    except ShapeError as error:
        raise ConfigError(f"{quantizer}: {error}") from error
