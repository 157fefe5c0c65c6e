"""Hugging Face checkpoints into Megatron-core's models, each rank reading what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.adapters.megatron_core.conversion.fields import gpt_fields
from octavo.adapters.megatron_core.conversion.local import LocalTensor, as_chunks, local_tensors
from octavo.adapters.megatron_core.conversion.original import Original
from octavo.adapters.megatron_core.conversion.runs import runs_of_rank
from octavo.adapters.megatron_core.conversion.tensors import MegatronTensor
from octavo.core.errors import ShapeError, UnsupportedError, listed
from octavo.core.model.shard_reader import ShardReader


def import_huggingface(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    layer_spec: Any = None,
    make_vocab_size_divisible_by: int = 1,
    **transformer: Any,
) -> nn.Module:
    """Build this rank's part of the `GPTModel` that a Hugging Face checkpoint is, with its weights.

    Megatron's model parallel groups must exist (`parallel_state.initialize_model_parallel`); the model is divided as
    they are. Each rank reads its own part of each tensor.

    Args:
        directory: The checkpoint: a folder with config.json and safetensors.
        dtype: Of the parameters; None: what the config names.
        layer_spec: For `GPTModel`; None: Megatron-core's local layer spec.
        make_vocab_size_divisible_by: Rows of zeros are added to the vocabulary until this times the tensor parallel
            size divides it. The logits of such rows are 0.
        transformer: Fields of `TransformerConfig` that differ.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or quantized.
        UnsupportedError: Megatron-core has no counterpart of the model; what stands in the way is named.
        ShapeError: the layout does not divide it.
    """
    original = Original.of(directory, dtype)
    model = build_gpt(original, layer_spec, make_vocab_size_divisible_by, **transformer)
    _load(model, original)
    return model


def load_huggingface(model: nn.Module | Sequence[nn.Module], directory: str | Path) -> None:
    """Fill a `GPTModel` that exists, built by a training script say, with the weights of a Hugging Face checkpoint.

    Args:
        model: This rank's part of it, in wrappers or not; of interleaved pipelines several.
        directory: The checkpoint, whose config the model must fit.

    Raises:
        CheckpointError, UnsupportedError: as in `import_huggingface`.
        ShapeError: the model has tensors that the checkpoint does not have, or of other shapes; they are named.
    """
    _load(model, Original.of(directory))


def build_gpt(
    original: Original, layer_spec: Any = None, divisible_by: int = 1, **transformer: Any
) -> nn.Module:
    """Build this rank's part of the `GPTModel`, its weights as the allocator left them; see `import_huggingface`."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    fields = gpt_fields(original.config)
    tp = parallel_state.get_tensor_model_parallel_world_size()
    pp = parallel_state.get_pipeline_model_parallel_world_size()
    experts = fields.transformer.get("num_moe_experts", 0)
    ep = parallel_state.get_expert_model_parallel_world_size()
    _check_layout(original, fields.transformer, tp, pp, ep)
    layout = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "params_dtype": original.dtype,
        "pipeline_dtype": original.dtype,
        "use_cpu_initialization": not torch.cuda.is_available(),
        "init_method": _leave,
        "output_layer_init_method": _leave,
        "masked_softmax_fusion": False,
        **_uneven_stages(fields.transformer["num_layers"], pp),
    }
    if experts:
        layout["expert_model_parallel_size"] = ep
        layout["expert_tensor_parallel_size"] = parallel_state.get_expert_tensor_parallel_world_size()
    config = TransformerConfig(**{**fields.transformer, **layout, **transformer})
    unit = divisible_by * tp
    vocabulary = -(-fields.gpt["vocab_size"] // unit) * unit
    return GPTModel(  # type: ignore[no-any-return]
        config,
        layer_spec or get_gpt_layer_local_spec(**fields.spec),
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        **{**fields.gpt, "vocab_size": vocabulary},
    )


def _leave(weight: Tensor) -> Tensor:
    """Initialize nothing: a checkpoint follows."""
    return weight


def _uneven_stages(layers: int, stages: int) -> dict[str, int]:
    """Return the field that gives the first stage the layers that do not divide."""
    return (
        {"num_layers_in_first_pipeline_stage": layers - (stages - 1) * (layers // stages)}
        if layers % stages
        else {}
    )


def _check_layout(original: Original, fields: Any, tp: int, pp: int, ep: int) -> None:
    """Refuse a layout that does not divide the model.

    Raises:
        ShapeError: every reason is listed.
    """
    groups = fields.get("num_query_groups", fields["num_attention_heads"])
    experts = fields.get("num_moe_experts", 0)
    problems = [
        f"{what} {number} is not divisible by {size} ({name})"
        for what, number, size, name in (
            ("num_attention_heads", fields["num_attention_heads"], tp, "tensor parallel"),
            ("the intermediate size", fields["ffn_hidden_size"], tp, "tensor parallel"),
            ("the number of experts", experts, ep, "expert parallel"),
        )
        if number % size
    ]
    if groups % tp and tp % groups:
        problems.append(
            f"{groups} key and value heads are neither a multiple nor a divisor of {tp} (tensor parallel)"
        )
    if fields["num_layers"] < pp:
        problems.append(f"{fields['num_layers']} layers are fewer than {pp} stages (pipeline parallel)")
    if problems:
        raise ShapeError(f"{original.directory} cannot be divided so: {'; '.join(problems)}")


@torch.no_grad()
def _load(model: nn.Module | Sequence[nn.Module], original: Original) -> None:
    found = local_tensors(as_chunks(model))
    if unknown := sorted(found.keys() - original.tensors.keys()):
        raise UnsupportedError(
            f"{original.directory} has nothing for {listed(unknown)} of this model; build it as "
            "import_huggingface does"
        )
    reader = ShardReader(original.directory)
    stored = _stored_names(original, reader)
    for name, local in found.items():
        values = read_part(original.tensors[name], local, reader, stored)
        if values.shape != local.parameter.shape:
            raise ShapeError(
                f"{name} has shape {list(local.parameter.shape)} on this rank, {original.directory} has "
                f"{list(values.shape)} for it: the model is not that of the checkpoint's config"
            )
        local.parameter.copy_(values)


def read_part(
    tensor: MegatronTensor, local: LocalTensor, reader: ShardReader, stored: dict[str, str]
) -> Tensor:
    """Return a rank's part of a tensor, reading that part alone.

    Args:
        tensor: All of it.
        local: Which rank's.
        reader: The checkpoint.
        stored: What its files call tensors that are tied.
    """
    dim = tensor.dim
    rank, ranks = (local.rank, local.ranks) if tensor.is_divided else (0, 1)
    sizes = [part.shape[dim] for part in tensor.parts]
    padding = (
        max(0, local.parameter.shape[dim] * ranks - sum(sizes)) if tensor.division == "vocabulary" else 0
    )
    pieces: list[Tensor] = []
    for run in runs_of_rank(sizes, tensor.groups_over(ranks), rank, ranks, padding):
        if run.part is None:
            pieces.append(torch.zeros(run.length, *local.parameter.shape[1:], dtype=local.parameter.dtype))
            continue
        part = tensor.parts[run.part]
        piece = reader.entries(stored[part.name], *part.place(dim, run.start), run.length)
        pieces.append(piece.T if part.is_transposed else piece)
    return torch.cat(pieces, dim)


def _stored_names(original: Original, reader: ShardReader) -> dict[str, str]:
    """Return under which name the files hold each tensor: of tied ones they have one."""
    skeleton = original.skeleton
    state = skeleton.model.state_dict(keep_vars=True)
    places = skeleton.layout.places()
    held = {id(state[place.name]): name for name, place in places.items() if name in reader}
    return {
        name: name if name in reader else held.get(id(state[place.name]), name)
        for name, place in places.items()
    }
