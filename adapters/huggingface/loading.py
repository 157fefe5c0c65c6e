"""Loading and building causal language models, and their tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.core.errors import FOREIGN_FAILURES, CheckpointError, ConfigError


def load_causal_lm(path: Path, dtype: torch.dtype | None, trust_remote_code: bool, quiet: bool) -> nn.Module:
    """Load a model with its weights, in `dtype` or the one its config names.

    Raises:
        ConfigError: it brings its own code and `trust_remote_code` is off.
        CheckpointError: transformers cannot load it; its reason is shown.
    """
    from transformers import AutoModelForCausalLM

    with _explained(path), _progress_bars(quiet):
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype if dtype is not None else "auto", trust_remote_code=trust_remote_code
        )
    return model.eval()


def build_causal_lm(directory: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> nn.Module:
    """Build the model of a config with random weights; `quantization_config` in it is left out.

    Raises:
        ConfigError, CheckpointError: as in `load_causal_lm`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with _explained(directory):
        config: Any = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=dtype or config.dtype or torch.float32, trust_remote_code=trust_remote_code
        )
    return model.eval()


def load_hf_tokenizer(path: Path, trust_remote_code: bool) -> Any:
    """Load the tokenizer of a checkpoint.

    Raises:
        ConfigError, CheckpointError: as in `load_causal_lm`.
    """
    from transformers import AutoTokenizer

    with _explained(path):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (*FOREIGN_FAILURES, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{path} brings code of its own, which runs only with trust_remote_code=True (--trust-remote-code); "
                "read it first"
            ) from error
        raise CheckpointError(
            f"transformers cannot load {path}: {error or type(error).__name__}. Is the folder a whole checkpoint "
            "of a causal language model?"
        ) from error


@contextmanager
def _progress_bars(quiet: bool) -> Iterator[None]:
    """Hide transformers' progress bars while the context is open, if `quiet`."""
    from transformers.utils import logging

    hidden = quiet and logging.is_progress_bar_enabled()
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            logging.enable_progress_bar()
