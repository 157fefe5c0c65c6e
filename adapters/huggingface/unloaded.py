"""A checkpoint's model as it is loaded, but for its weights: they are on the meta device."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.adapters.huggingface.loading import build_from_config, load_explained


def build_unloaded(
    directory: Path, names: Collection[str], dtype: torch.dtype | None, trust_remote_code: bool
) -> nn.Module:
    """Return what `load_pretrained` would, with every tensor on the meta device; `names` are the checkpoint's.

    Raises:
        ConfigError, CheckpointError: as in `load_pretrained`.
    """
    with torch.device("meta"):
        model: Any = build_from_config(directory, dtype, trust_remote_code)
    _keep_in_fp32(model)
    _remember_names(model, names)
    if model.can_generate() and (directory / "generation_config.json").is_file():
        from transformers import GenerationConfig

        with load_explained(directory):
            model.generation_config = GenerationConfig.from_pretrained(directory)
    return model  # type: ignore[no-any-return]


def fill_buffers(model: Any) -> None:
    """Give the buffers that checkpoints do not hold (frequencies of rotary embeddings) their values, on the CPU."""
    waiting = [(name, buffer) for name, buffer in model.named_non_persistent_buffers() if buffer.is_meta]
    for name, buffer in waiting:
        owner, _, own_name = name.rpartition(".")
        model.get_submodule(owner)._buffers[own_name] = torch.empty_like(buffer, device="cpu")
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
    model.initialize_weights()


def _keep_in_fp32(model: Any) -> None:
    """Give tensors fp32 that `from_pretrained` keeps so in a model of half precision."""
    plan = model._get_dtype_plan(model.dtype)
    if not plan:
        return
    from transformers.core_model_loading import build_glob_alternation

    pattern, names, _ = build_glob_alternation(list(plan))
    for name, tensor in model.state_dict(keep_vars=True).items():
        if found := pattern.search(name):
            owner, _, own_name = name.rpartition(".")
            module, kept = model.get_submodule(owner), tensor.detach().to(plan[names[found.lastgroup]])
            if isinstance(tensor, nn.Parameter):
                module._parameters[own_name] = nn.Parameter(kept, tensor.requires_grad)
            else:
                module._buffers[own_name] = kept


def _remember_names(model: Any, names: Collection[str]) -> None:
    """Note how the checkpoint's names are the model's, as `from_pretrained` does, so that they are written again."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    for name in sorted(names):
        rename_source_key(name, renamings, converters, model.base_model_prefix, state)
    model._weight_conversions = [entry for entry in mapping if entry.was_used()]
