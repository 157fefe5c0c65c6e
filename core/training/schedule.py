"""Schedule: which quantizers round at a step of training, and what no longer changes; a function of the step alone."""

from __future__ import annotations

from dataclasses import dataclass, fields

from octavo.core.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """When parts of quantization begin and end, in finished optimizer steps.

    A resumed run asks with the step that it is at, and gets what the uninterrupted run had.

    Attributes:
        weights_from: Weights are rounded from this step on.
        activations_from: Everything else is (inputs, outputs, queries, keys, values).
        ramp: Layers join one after the other, from first to last, in so many steps after these.
        freeze_scales_at: Scales that are learned, recomputed or observed stay as they are from this step on.
        freeze_batch_norm_at: Batch norms use their running statistics, and leave them, from this step on.

    Raises ConfigError where a step is no number of steps.
    """

    weights_from: int = 0
    activations_from: int = 0
    ramp: int = 0
    freeze_scales_at: int | None = None
    freeze_batch_norm_at: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            step = getattr(self, field.name)
            may_be_never = field.name.startswith("freeze") and step is None
            if not may_be_never and (type(step) is not int or step < 0):
                raise ConfigError(f"schedule: {field.name}={step!r}; expected a number of steps, 0 or more")

    def rounds_weights(self, step: int, layer: int, num_layers: int) -> bool:
        """Return whether the weight of layer number `layer`, counted from 0, is rounded."""
        return step >= self.weights_from + self._delay(layer, num_layers)

    def rounds_activations(self, step: int, layer: int, num_layers: int) -> bool:
        """Return whether the other tensors of layer number `layer` are rounded."""
        return step >= self.activations_from + self._delay(layer, num_layers)

    def scales_are_frozen(self, step: int) -> bool:
        """Return whether scales stay as they are."""
        return self.freeze_scales_at is not None and step >= self.freeze_scales_at

    def batch_norm_is_frozen(self, step: int) -> bool:
        """Return whether batch norms leave their running statistics."""
        return self.freeze_batch_norm_at is not None and step >= self.freeze_batch_norm_at

    def _delay(self, layer: int, num_layers: int) -> int:
        return self.ramp * layer // num_layers
