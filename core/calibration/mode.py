"""The mode `quantize`: how a quantized model is described, restored and undone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from octavo.core.calibration.attach import attach_described, describe_quantizers, detach
from octavo.core.calibration.finalize import finalized_for, forget_finalization
from octavo.core.errors import ModeError


class QuantizeMode:
    """Quantizers on layers; their calibrated tensors travel in the model's state dict."""

    name = "quantize"
    version = 1

    def describe(self, model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record's state as the model is now.

        Raises:
            ModeError: the model is finalized for a dialect, so that its formats are not its own.
        """
        if (dialect := finalized_for(model)) is not None:
            raise ModeError(
                f"the model is finalized for {dialect}; call octavo.unfinalize(model) before saving it"
            )
        return {**state, "layers": describe_quantizers(model)}

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Attach the quantizers that the state describes."""
        attach_described(model, state["layers"])

    def undo(self, model: nn.Module) -> None:
        """Take all quantizers off."""
        forget_finalization(model)
        detach(model)
