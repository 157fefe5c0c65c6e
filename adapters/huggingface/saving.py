"""`save_pretrained` of models with packed weights: transformers asks the model's quantizer what to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.core.modes.saved_record import HF_METHOD


def allow_saving(model: Any) -> None:
    """Give the model the quantizer that `save_pretrained` asks for its tensors, and the config for its modes."""
    from octavo.adapters.huggingface.from_pretrained import quantizer_classes

    quantizer, config = quantizer_classes()
    model.hf_quantizer = quantizer(config(quant_method=HF_METHOD))


def forget_saving(model: Any) -> None:
    """Undo `allow_saving`."""
    model.__dict__.pop("hf_quantizer", None)
    forget_record(model.config)


def forget_record(config: Any) -> None:
    """Take the record of modes off a config, where `save_pretrained` has left it."""
    found = getattr(config, "quantization_config", None)
    if isinstance(found, Mapping) and found.get("quant_method") == HF_METHOD:
        del config.quantization_config
