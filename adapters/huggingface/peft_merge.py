"""`merge_adapters`: PEFT's adapters taken into the weights of a quantized model, which is one to export then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from torch import nn

from octavo.core.calibration.algorithms import algorithms_of
from octavo.core.calibration.finalized import check_not_finalized
from octavo.core.calibration.fold_mode import FOLD
from octavo.core.calibration.forward_loop import ForwardLoop
from octavo.core.calibration.quantize import quantize
from octavo.core.calibration.unscaled import unscale_weights
from octavo.core.compression.decompress import decompress
from octavo.core.config import load_config
from octavo.core.errors import (
    CalibrationError,
    ConfigError,
    ModeError,
    TrainingError,
    UnsupportedError,
    listed,
    nearest,
)
from octavo.core.modes.record import ModeRecord, history, last_record, set_history, with_history
from octavo.core.modes.registry import mode_named
from octavo.core.modules import packed_layers, quantized_layers

Scales = Literal["held", "recomputed"]


def merge_adapters(
    model: Any,
    config: str | Mapping[str, Any] | None = None,
    forward_loop: ForwardLoop | None = None,
    scales: Scales | None = None,
    quiet: bool = False,
) -> nn.Module:
    """Merge PEFT's adapters into the weights of the quantized model under them: a quantized model like any other.

    Scales were found for the weights without the adapters. What becomes of them:

    * `held`: they stay as they are. The result of adapters on weights (`target_parameters`), whose sums were rounded
      with these scales in training, computes exactly what was trained; it is the default for these.
    * `recomputed`: the merged weights are quantized anew, weights and activations, by the config's own algorithm. The
      default otherwise: an adapter beside a rounded layer was never rounded itself, and a scale of the weight alone
      may clip their sum. Rounding the sum loses some of what was trained; look at the result.

    Packed weights are made dense first, by the values of their codes, and are dense afterwards; `octavo.compress` packs
    them again. The adapters are gone from `model`; what is returned is the model under them.

    Args:
        model: A `peft.PeftModel` over a model that `octavo.quantize` or `octavo.compress` returned.
        config: Another format than the one that the adapters were trained over, by a preset's name or a config; None
            keeps it.
        forward_loop: Calibration data, as in `octavo.quantize`; needed for new scales of activations, and by
            algorithms that look at data.
        scales: `held` or `recomputed`.
        quiet: Print nothing.

    Raises:
        UnsupportedError: `model` has no adapters that could be merged.
        ModeError: the model under them is not quantized, or finalized; or quantizers are over PEFT's own layers.
        ConfigError: `scales` is wrong, or cannot be held: weights are packed or folded, or the format is another one.
        TrainingError: an adapter has NaN or infinite values.
        CalibrationError: data is needed. Nothing was changed, as in the cases above.
        PlanError, ConfigError, CalibrationError, UnsupportedError: the merged weights could not be quantized, as in
            `octavo.quantize`; the model is merged then, and not quantized.
    """
    owner, record = _quantized_base(model)
    if scales is not None and scales not in (known := get_args(Scales)):
        raise ConfigError(f"scales={scales!r}; expected one of {', '.join(known)}.{nearest(scales, known)}")
    _check_finite(model)
    reason = _reason_against_holding(owner, config)
    if scales == "held" and reason:
        raise ConfigError(f"scales='held' needs the scales of the model's own dense weights, but {reason}")
    if scales == "held" or (scales is None and not reason and _rounded_with_adapters(model)):
        return _merged(model)
    wanted = load_config(record.config if config is None else config)
    _check_data(wanted, [] if config is not None else [*_calibrated_by_data(owner)], forward_loop)
    if any(True for _ in packed_layers(owner)):
        decompress(model)
    unscale_weights(owner)
    merged = _merged(model)
    mode_named("quantize").undo(merged)
    set_history(merged, tuple(one for one in history(merged) if one.mode not in (FOLD, "quantize")))
    return quantize(merged, wanted, forward_loop, quiet)


def _quantized_base(model: Any) -> tuple[nn.Module, ModeRecord]:
    """Return the quantized model under the adapters, and how it was quantized."""
    if not hasattr(model, "merge_and_unload"):
        raise UnsupportedError(
            f"{type(model).__name__} has no adapters that could be merged; expected a peft.PeftModel, as "
            "octavo.add_adapters returns it, with adapters on weights (LoRA and its kin)"
        )
    owner = with_history(model)
    record = last_record(owner, "quantize")
    if record is None:
        raise ModeError(
            "the model under the adapters is not quantized; call model.merge_and_unload() and then octavo.quantize"
        )
    if owner is model:
        raise ModeError(
            "the quantizers were put over PEFT's layers, adapters included; quantize the model first, and put adapters "
            "over it by octavo.add_adapters"
        )
    if not any(True for _ in packed_layers(owner)):
        check_not_finalized(owner, "merging adapters into")
    return owner, record


def _check_finite(model: Any) -> None:
    """Refuse adapters that training has broken, before any of them is in a weight."""
    prefix = model.base_model.prefix  # of PEFT's own parameters: "lora_"
    for name, parameter in model.named_parameters():
        if prefix in name and not parameter.isfinite().all():
            raise TrainingError(
                f"the adapter's {name!r} has NaN or infinite values, and merging would put them into the weights; go "
                "back to a checkpoint from before"
            )


def _reason_against_holding(owner: nn.Module, config: Any) -> str:
    if config is not None:
        return "another format was given"
    if any(True for _ in packed_layers(owner)):
        return "its weights are packed: their original values are gone"
    if last_record(owner, FOLD) is not None:
        return "its weights are folded: they hold rounded values"
    return ""


def _rounded_with_adapters(model: nn.Module) -> bool:
    """Return whether every adapter is on a weight, so that rounding saw the sum."""
    from peft.tuners.lora.layer import ParamWrapper  # on use only
    from peft.tuners.tuners_utils import BaseTunerLayer

    return all(isinstance(one, ParamWrapper) for one in model.modules() if isinstance(one, BaseTunerLayer))


def _check_data(
    config: Mapping[str, Any], activations: Sequence[str], forward_loop: ForwardLoop | None
) -> None:
    """Refuse, before anything is changed, what could not be calibrated in the end."""
    asking = [one.method for one in algorithms_of(config["algorithm"]) if one.needs().any_input]
    if forward_loop is None and (activations or asking):
        found = (
            f"{len(activations)} scales of activations ({listed(activations, 2)}) come"
            if activations
            else f"the algorithm {asking[0]!r} chooses"
        )
        raise CalibrationError(
            f"merging quantizes the model anew, and {found} from data: give forward_loop, or, where adapters were "
            "rounded with the weights, scales='held'"
        )


def _calibrated_by_data(owner: nn.Module) -> Iterator[str]:
    """Yield the quantizers of anything but weights that have calibrated scales."""
    for name, layer in quantized_layers(owner):
        weights = {slot.quantizer for slot in layer.weight_slots()}
        for short, quantizer in layer.quantizers().items():
            stages = quantizer.stages() if short not in weights else []
            if any(stage.enabled and stage.named_state() for stage in stages):
                yield f"{name}.{short}"


def _merged(model: Any) -> nn.Module:
    """Return the model under the adapters, with them in its weights."""
    merged: nn.Module = model.merge_and_unload(safe_merge=True)
    return merged
