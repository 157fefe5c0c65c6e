"""The mode `quantize`: how a quantized model is described, restored and undone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from octavo.core.calibration.attach import detach
from octavo.core.calibration.calibration_report import check_report
from octavo.core.calibration.finalized import (
    check_not_finalized,
    forget_finalization,
    lasting_finalization,
)
from octavo.core.calibration.layer_records import attach_described, describe_quantizers
from octavo.core.calibration.learned_scales import check_scales_fixed
from octavo.core.modes.record import part


class QuantizeMode:
    """Quantizers on layers; their calibrated tensors travel in the model's state dict."""

    name = "quantize"
    version = 1

    def describe(self, model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record's state as the model is now.

        Raises:
            ModeError: the model is finalized for a dialect, so that its formats are not its own; or its scales are
                being learned.
        """
        if lasting_finalization(model) is None:
            check_not_finalized(model, "saving")
        check_scales_fixed(model, "saving")
        return {**state, "layers": describe_quantizers(model)}

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Attach the quantizers that the state describes.

        Raises:
            OctavoError: the state is damaged or does not fit the model, as in `attach_described`.
        """
        where = "the record of mode 'quantize'"
        part(state, "same_input", list, where)  # finalizing reads it
        check_report(state, where)
        attach_described(model, part(state, "layers", dict, where))

    def commit(self, model: nn.Module) -> None:
        """Do nothing: nothing is kept."""

    def undo(self, model: nn.Module) -> None:
        """Take all quantizers off.

        Raises:
            UnsupportedError: a layer got a forward of its own since; nothing was changed.
        """
        detach(model)
        forget_finalization(model)
