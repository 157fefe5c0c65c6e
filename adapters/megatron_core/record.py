"""The record of a model's modes in distributed checkpoints: that of the whole model, whatever the layout of ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from octavo.adapters.megatron_core.layers import QuantParallelLinear
from octavo.adapters.megatron_core.names import global_names
from octavo.adapters.megatron_core.sharded_state import factor_dim, tensor_group
from octavo.adapters.megatron_core.texts import of_all_ranks, to_bytes
from octavo.core.errors import CheckpointError, ModeError, listed
from octavo.core.modes.record import ModeRecord, part
from octavo.core.modes.saved_record import describe_modes, modes_of
from octavo.core.modules import quantized_class

CHILD = "octavo_record"
KEY = f"{CHILD}.modes"
_FACTORS = ("pre_quant_scale", "low_rank_down", "low_rank_up")
_QUANTIZE = "quantize"


class RecordCarrier(nn.Module):
    """A child of a quantized model, without tensors, by which its checkpoints carry the record of its modes.

    Whatever saves the model's `sharded_state_dict` saves the record: a uint8 tensor of JSON, the same on all ranks.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a child: it has this one

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the record for a distributed checkpoint; all ranks call this together.

        While loading, what is stored may be longer or shorter; it is not used.

        Raises:
            ModeError: the model is finalized for a dialect, or has a mode that cannot be divided among ranks.
        """
        from megatron.core.dist_checkpointing import ShardedTensor

        model, rank = self.__dict__["model"], torch.distributed.get_rank()
        content = to_bytes(whole_record(model), device_of(model))
        key = f"{prefix}modes"
        return {
            key: ShardedTensor.from_rank_offsets(key, content, replica_id=rank, allow_shape_mismatch=True)
        }

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `load` has applied the record, and tensors of another name there are none."""


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters, on which its ranks communicate."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def whole_record(model: nn.Module) -> str:
    """Return the record of the model that all ranks have together, as JSON; all of them call this together."""
    own = describe_modes(model)
    for mode in own["modes"]:
        if mode["mode"] == _QUANTIZE:
            _rename(model, mode["state"], global_names(model))
    texts = of_all_ranks(json.dumps(own), device_of(model))
    records = [json.loads(text) for text in dict.fromkeys(texts)]
    whole = records[0]
    for number, mode in enumerate(whole["modes"]):
        if mode["mode"] == _QUANTIZE:
            states = [record["modes"][number]["state"] for record in records]
            mode["state"]["layers"] = {n: layer for state in states for n, layer in state["layers"].items()}
            groups = {tuple(group): None for state in states for group in state["same_input"]}
            mode["state"]["same_input"] = [list(group) for group in groups]
    return json.dumps(whole, sort_keys=True)


def records_for(model: nn.Module, text: str, where: str) -> tuple[ModeRecord, ...]:
    """Return the part of a whole model's record that is about this rank's layers; all ranks call this together.

    Args:
        model: A plain model.
        text: What `whole_record` returned, under any layout.
        where: The checkpoint, for messages.

    Raises:
        CheckpointError: the record is damaged, or factors cannot be divided among this layout's ranks.
        ModeError: it is of a newer version, or has layers that no rank has.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"the record of modes in {where} cannot be read as JSON: {error}") from error
    records = modes_of(data, where)
    own_names = {whole: own for own, whole in global_names(model).items()}
    for record in records:
        if record.mode == _QUANTIZE:
            state = cast("dict[str, Any]", record.state)
            layers = part(state, "layers", dict, where)
            _check_layers_exist(model, [name for name in layers if name not in own_names], where)
            state["layers"] = {own_names[name]: layer for name, layer in layers.items() if name in own_names}
            state["same_input"] = [
                [own_names[name] for name in group]
                for group in part(state, "same_input", list, where)
                if all(name in own_names for name in group)
            ]
            for name, layer in state["layers"].items():
                _scale_shapes(name, model.get_submodule(name), layer, is_whole=False)
    return records


def _check_layers_exist(model: nn.Module, missing: list[str], where: str) -> None:
    """Refuse layers that are missing on every rank."""
    everywhere = set(missing)
    for text in of_all_ranks(json.dumps(missing), device_of(model)):
        everywhere &= set(json.loads(text))
    if everywhere:
        raise ModeError(
            f"{where} has {len(everywhere)} quantized layers that no rank of this {type(model).__name__} has: "
            f"{listed(sorted(everywhere), 2)}; build the model that was saved"
        )


def _rename(model: nn.Module, state: dict[str, Any], names: Mapping[str, str]) -> None:
    """Name layers as in the whole model, and give factors the shapes that they have there; in place."""
    for name, layer in state["layers"].items():
        _scale_shapes(name, model.get_submodule(name), layer, is_whole=True)
    state["layers"] = {names[name]: layer for name, layer in state["layers"].items()}
    state["same_input"] = [[names[name] for name in group] for group in state["same_input"]]


def _scale_shapes(name: str, module: nn.Module, layer: Mapping[str, Any], is_whole: bool) -> None:
    """Change the shapes of factors from a rank's to the whole model's, or back; in place.

    Raises:
        CheckpointError: a factor cannot be divided among the ranks.
    """
    quantized = type(module) if isinstance(module, QuantParallelLinear) else quantized_class(type(module))
    if quantized is None or not issubclass(quantized, QuantParallelLinear):
        return
    ranks = tensor_group(module).size()
    for quantizer, stages in layer["quantizers"].items():
        for stage in stages:
            for factor in _FACTORS:
                dim = factor_dim(quantized.divided_dim, quantizer, factor)
                if stage.get(factor) is None or dim is None:
                    continue
                length = stage[factor][dim]
                if not is_whole and length % ranks:
                    raise CheckpointError(
                        f"{name}.{quantizer}: {factor} has {length} entries, which {ranks} tensor-parallel ranks "
                        "cannot share; load it with a number of ranks that divides them"
                    )
                stage[factor][dim] = length * ranks if is_whole else length // ranks
