"""Loading and building causal language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


def load_causal_lm(path: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> nn.Module:
    """Load a model with its weights, in `dtype` or the one its config names."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype if dtype is not None else "auto", trust_remote_code=trust_remote_code
    )
    return model.eval()


def build_causal_lm(directory: Path, dtype: torch.dtype, trust_remote_code: bool) -> nn.Module:
    """Build the model of a config with random weights; `quantization_config` in it is left out."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: nn.Module = AutoModelForCausalLM.from_config(
        config, dtype=dtype, trust_remote_code=trust_remote_code
    )
    return model.eval()
