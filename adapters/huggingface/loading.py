"""Loading and building models, and their tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.adapters.huggingface.quantized import check_config_unquantized
from octavo.core.errors import FOREIGN_FAILURES, CheckpointError, ConfigError
from octavo.core.plugins import plugins


def load_pretrained(path: Path, dtype: torch.dtype | None, trust_remote_code: bool, quiet: bool) -> nn.Module:
    """Load a model with its weights, in `dtype` or the one its config names.

    Raises:
        ConfigError: it brings its own code and `trust_remote_code` is off.
        CheckpointError: transformers cannot load it; its reason is shown. Or Octavo wrote it: it is quantized.
    """
    plugins().check_unquantized(path)
    with load_explained(path):
        config = _config(path, trust_remote_code)
    check_config_unquantized(config, path)
    with load_explained(path), _progress_bars(quiet):
        cls = _model_class(config)
        model: nn.Module = cls.from_pretrained(
            path, dtype=dtype if dtype is not None else "auto", trust_remote_code=trust_remote_code
        )
    return model.eval()


def build_from_config(directory: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> nn.Module:
    """Build the model of a config, for its weights to be filled in; `quantization_config` in it is left out.

    Nothing is drawn at random and buffers are as a checkpoint expects them. Code that a checkpoint brings may
    initialize its weights nevertheless; the caller's random state stays what it was.

    Raises:
        ConfigError, CheckpointError: as in `load_pretrained`.
    """
    from transformers.initialization import no_init_weights

    with load_explained(directory), torch.random.fork_rng(devices=[]):
        config = _config(directory, trust_remote_code)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        dtype = dtype or config.dtype or torch.float32
        model: nn.Module
        cls = _model_class(config)
        if hasattr(cls, "from_config"):
            model = cls.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        else:
            with no_init_weights():
                model = cls._from_config(config, dtype=dtype)
            _initialize_buffers(model)
    return model.eval()


def _initialize_buffers(model: Any) -> None:
    """Set the buffers that checkpoints do not hold, and tie what is tied, as `from_pretrained` does."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    model.init_weights()


def load_hf_tokenizer(path: Path, trust_remote_code: bool) -> Any:
    """Load the tokenizer of a checkpoint.

    Raises:
        ConfigError, CheckpointError: as in `load_pretrained`.
    """
    from transformers import AutoTokenizer

    with load_explained(path):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


def _config(path: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def _model_class(config: Any) -> Any:
    """Return the class that the config names, or the one for causal language models of its type.

    Names outside transformers and names of other models' classes count as none; a checkpoint's own code is found by
    the auto class alone.
    """
    import transformers

    names = config.architectures or []
    if names and not hasattr(config, "auto_map"):
        named = getattr(transformers, names[0], None)
        is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
        if is_model and isinstance(config, named.config_class or ()):  # type: ignore[union-attr]
            return named
    return transformers.AutoModelForCausalLM


@contextmanager
def load_explained(path: Path) -> Iterator[None]:
    """Turn what transformers raises into errors that name the folder.

    Raises:
        ConfigError, CheckpointError: as in `load_pretrained`.
    """
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
            "of a model?"
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
