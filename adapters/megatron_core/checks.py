"""What of Megatron-core the adapter knows, and what it is given."""

from __future__ import annotations

from typing import Any

from torch import nn

from octavo.core.console import say
from octavo.core.errors import UnsupportedError

OLDEST = (0, 14)
NEWEST_TESTED = (0, 16)
_REFUSED = ("fp8", "fp4", "delay_wgrad_compute", "virtual_pipeline_model_parallel_size")
_WRAPPERS = (
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "TorchFullyShardedDataParallel",
    "Float16Module",
)


def check_version() -> None:
    """Refuse a Megatron-core older than the oldest known one, and warn of one newer than those tested.

    Raises:
        UnsupportedError: it is too old; both versions are named.
    """
    import megatron.core

    found = str(megatron.core.__version__)
    numbers = tuple(int(part) for part in found.split(".")[:2])
    if numbers < OLDEST:
        raise UnsupportedError(
            f"megatron-core {found} is older than {_spelled(OLDEST)}, the oldest whose layers are known; upgrade it "
            '(pip install "megatron-core>=0.14,<0.17")'
        )
    if numbers > NEWEST_TESTED:
        say(
            f"warning: megatron-core {found} is newer than {_spelled(NEWEST_TESTED)}, the newest that was tested; "
            "compare a quantized model's outputs before you trust it",
            quiet=False,
        )


def check_unwrapped(model: nn.Module) -> None:
    """Refuse what wraps a model: names of layers, and the record of what was done to it, belong to the model.

    Raises:
        UnsupportedError: `model` wraps one.
    """
    if type(model).__name__ in _WRAPPERS:
        raise UnsupportedError(
            f"a {type(model).__name__} wraps the model; quantize the model inside it "
            "(megatron.core.utils.unwrap_model), which may also be done before it is wrapped"
        )


def check_settings(model: nn.Module) -> None:
    """Refuse settings that quantized layers would pass over, or that checkpoints would not survive.

    Raises:
        UnsupportedError: one is on; it is named with its value.
    """
    config: Any = getattr(model, "config", None)
    on = [name for name in _REFUSED if getattr(config, name, None)]
    if on:
        raise UnsupportedError(
            f"the model's config has {', '.join(f'{name}={getattr(config, name)!r}' for name in on)}, which is not "
            "available with quantized layers; turn it off (formats are chosen by Octavo's own config)"
        )


def _spelled(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
