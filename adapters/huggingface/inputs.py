"""The smallest inputs that run a model, whatever it reads."""

from __future__ import annotations

from typing import Any

import torch

_TOKENS = 4


def smallest_inputs(model: Any) -> dict[str, Any] | None:
    """Return keyword arguments for the smallest forward pass, or None where the config does not say what it takes.

    Text alone is given to a model that reads images, too. Tokens are int64 [1, 4]; images [1, channels, height,
    width] and log-mel features [1, bins, frames] are zeros.
    """
    parameter = next(model.parameters())
    config, main = model.config, model.main_input_name
    tokens = torch.arange(_TOKENS, device=parameter.device)[None]
    inputs: dict[str, Any]
    if main == "input_ids":
        inputs = {"input_ids": tokens, "use_cache": False}
        if parameter.is_meta:  # a ready-made mask: making one looks at values, which meta tensors have not
            inputs["attention_mask"] = parameter.new_zeros(1, 1, _TOKENS, _TOKENS)
    elif (
        main == "pixel_values"
        and _has(config, "image_size", "num_channels")
        and not _has(config, "num_frames")
    ):
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        inputs = {"pixel_values": parameter.new_zeros(1, config.num_channels, height, width)}
    elif main == "input_features" and _has(config, "num_mel_bins", "max_source_positions"):
        frames = 2 * config.max_source_positions  # Whisper's second convolution halves them
        inputs = {"input_features": parameter.new_zeros(1, config.num_mel_bins, frames)}
    else:
        return None
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens
    return inputs


def _has(config: Any, *names: str) -> bool:
    return all(hasattr(config, name) for name in names)
