"""Models and checkpoints that are quantized already, as their configs say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError, ModeError
from octavo.core.modes.saved_record import HF_METHOD
from octavo.core.plugins import plugins


def check_config_unquantized(config: Any, path: Path) -> None:
    """Refuse the config of a checkpoint that Octavo, or another tool of an exporter's dialect, wrote.

    Raises:
        CheckpointError: its weights are codes, or come with quantizers.
    """
    method = _quant_method(config)
    if method in _known_methods():
        raise CheckpointError(
            f"{path} is quantized already (quant_method {method!r} in config.json); expected the original model"
        )


def check_model_unquantized(model: Any) -> None:
    """Refuse a model that was loaded from such a checkpoint; transformers may have taken its codes for weights.

    Raises:
        ModeError: the model's config names a known `quant_method`.
    """
    method = _quant_method(model.config)
    if method in _known_methods():
        raise ModeError(
            f"{type(model).__name__} was loaded from a checkpoint that is quantized already (quant_method {method!r} "
            "in its config); load the original model, or what octavo.load_quantized returns and unquantize that"
        )


def _quant_method(config: Any) -> str | None:
    found = getattr(config, "quantization_config", None)
    method = found.get("quant_method") if isinstance(found, Mapping) else getattr(found, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def _known_methods() -> set[str]:
    names = plugins().exporter_names()
    return {HF_METHOD, *(plugins().exporter(name).quant_method for name in names)}
