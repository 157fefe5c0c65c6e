"""Hooks of the Hugging Face adapter. Imports transformers only inside hooks, for models that are its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.description import ModelDescription
from octavo.core.model.family_map import describe_by_map
from octavo.core.modules.experts import QuantExperts
from octavo.core.plugins.hookspecs import DataRequest, PluginInfo
from octavo.core.plugins.markers import hookimpl


def is_transformers_model(model: nn.Module) -> bool:
    """Whether `model` is a `PreTrainedModel`, judged without importing transformers."""
    return any(
        cls.__name__ == "PreTrainedModel" and cls.__module__.startswith("transformers.")
        for cls in type(model).__mro__
    )


@hookimpl
def plugin_info() -> PluginInfo:
    """Describe this plugin."""
    return PluginInfo("huggingface", "Hugging Face transformers models, data and files", ("transformers",))


@hookimpl
def quantized_classes() -> Mapping[str, str]:
    """Return the quantized classes of transformers' own linear layers."""
    falcon = "transformers.models.falcon.modeling_falcon:FalconLinear"
    return {
        "transformers.pytorch_utils:Conv1D": "octavo.adapters.huggingface.conv1d:QuantConv1D",
        falcon: "octavo.adapters.huggingface.falcon:QuantFalconLinear",
    }


@hookimpl
def check_model(model: nn.Module) -> None:
    """Refuse a model whose config says that its weights were read from a quantized checkpoint."""
    if is_transformers_model(model):
        from octavo.adapters.huggingface.quantized import check_model_unquantized

        check_model_unquantized(model)


@hookimpl
def describe_model(model: nn.Module) -> ModelDescription | None:
    """Describe a transformers model by its family map, or its language tower by that of its text config."""
    if not is_transformers_model(model):
        return None
    config: Any = model.config
    description = describe_by_map(model, config.model_type, config)
    text: Any = getattr(config, "text_config", None)
    if description is not None or not hasattr(text, "model_type"):
        return description
    decoder = model.get_decoder()  # type: ignore[operator]
    tower = next((name for name, module in model.named_modules() if module is decoder), "")
    return describe_by_map(model, text.model_type, text, tower)


@hookimpl
def tiny_inputs(model: nn.Module) -> Mapping[str, Any] | None:
    """Return a few tokens, one image or one stretch of sound, as the model reads them."""
    if not is_transformers_model(model):
        return None
    from octavo.adapters.huggingface.inputs import smallest_inputs

    return smallest_inputs(model)


@hookimpl
def attention_layers(model: nn.Module) -> Mapping[str, nn.Module] | None:
    """Return the layers that call transformers' attention interface."""
    if not is_transformers_model(model):
        return None
    from octavo.adapters.huggingface.attention import interface_layers

    return interface_layers(model)


@hookimpl
def left_out_attention(model: nn.Module) -> Mapping[str, str] | None:
    """Return the other attention layers, and why they are left out."""
    if not is_transformers_model(model):
        return None
    from octavo.adapters.huggingface.attention import left_out_layers

    return left_out_layers(model)


@hookimpl
def expert_layers(model: nn.Module) -> Mapping[str, type[QuantExperts]] | None:
    """Return the layers of stacked experts."""
    if not is_transformers_model(model):
        return None
    from octavo.adapters.huggingface.experts import experts_mixin

    mixins = {name: experts_mixin(layer) for name, layer in model.named_modules()}
    return {name: mixin for name, mixin in mixins.items() if mixin is not None}


@hookimpl
def prepare_model(model: nn.Module) -> None:
    """Route attention through quantizers, where layers have them."""
    if is_transformers_model(model):
        from octavo.adapters.huggingface.attention import route_attention

        route_attention(model)


@hookimpl
def unprepare_model(model: nn.Module) -> None:
    """Undo `prepare_model`."""
    if is_transformers_model(model):
        from octavo.adapters.huggingface.attention import unroute_attention

        unroute_attention(model)


@hookimpl
def weights_packed(model: nn.Module) -> None:
    """Let `save_pretrained` write packed weights."""
    if is_transformers_model(model):
        from octavo.adapters.huggingface.saving import allow_saving

        allow_saving(model)


@hookimpl
def weights_unpacked(model: nn.Module) -> None:
    """Undo `weights_packed`."""
    if is_transformers_model(model):
        from octavo.adapters.huggingface.saving import forget_saving

        forget_saving(model)


@hookimpl
def checkpoint_layout(model: nn.Module, names: Sequence[str]) -> CheckpointLayout | None:
    """Name parameters, and take stacked experts apart, as `save_pretrained` would."""
    if not is_transformers_model(model):
        return None
    from octavo.adapters.huggingface.layout import layout_in_checkpoint

    return layout_in_checkpoint(model, names)


@hookimpl
def write_companions(model: nn.Module, directory: Path, tokenizer: Any, dtype: torch.dtype) -> bool | None:
    """Write config, generation config, tokenizer and remote-code files."""
    if not is_transformers_model(model):
        return None
    from octavo.adapters.huggingface.checkpoint import write_companion_files

    write_companion_files(model, directory, tokenizer, dtype)
    return True


@hookimpl
def load_model(
    path: Path, dtype: torch.dtype | None, trust_remote_code: bool, quiet: bool
) -> nn.Module | None:
    """Load a model with its weights."""
    if not _can_load(path):
        return None
    from octavo.adapters.huggingface.loading import load_pretrained

    return load_pretrained(path, dtype, trust_remote_code, quiet)


@hookimpl
def build_model(directory: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> nn.Module | None:
    """Build the model of a checkpoint's config, without its weights."""
    if not _can_load(directory):
        return None
    from octavo.adapters.huggingface.loading import build_from_config

    return build_from_config(directory, dtype, trust_remote_code)


@hookimpl
def build_unloaded(
    directory: Path, names: Collection[str], dtype: torch.dtype | None, trust_remote_code: bool
) -> nn.Module | None:
    """Build the model of a checkpoint as it is loaded, without values."""
    if not _can_load(directory):
        return None
    from octavo.adapters.huggingface.unloaded import build_unloaded

    return build_unloaded(directory, names, dtype, trust_remote_code)


@hookimpl
def fill_buffers(model: nn.Module) -> bool | None:
    """Compute the buffers that checkpoints do not hold."""
    if not is_transformers_model(model):
        return None
    from octavo.adapters.huggingface.unloaded import fill_buffers

    fill_buffers(model)
    return True


@hookimpl
def load_tokenizer(path: Path, trust_remote_code: bool) -> Any:
    """Load a checkpoint's tokenizer."""
    if not _can_load(path):
        return None
    from octavo.adapters.huggingface.loading import load_hf_tokenizer

    return load_hf_tokenizer(path, trust_remote_code)


@hookimpl
def text_batches(tokenizer: Any, request: DataRequest) -> Sequence[Mapping[str, torch.Tensor]] | None:
    """Tokenize text with a transformers tokenizer."""
    if not any(cls.__module__.startswith("transformers.") for cls in type(tokenizer).__mro__):
        return None
    from octavo.adapters.huggingface.data import read_batches

    return read_batches(tokenizer, request)


def _can_load(path: Path) -> bool:
    return find_spec("transformers") is not None and (path / "config.json").is_file()
