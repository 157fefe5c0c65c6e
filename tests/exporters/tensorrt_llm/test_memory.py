"""Writing keeps no more than a parameter's codes, and what it is about to hand out."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

import octavo
from helpers.tensorrt_llm_models import quantized_llama
from octavo.core.plugins import plugins
from octavo.core.report.weight_error import WeightErrors
from octavo.exporters.tensorrt_llm.checkpoint import Checkpoint
from octavo.exporters.tensorrt_llm.families import family_for
from octavo.exporters.tensorrt_llm.inspection import inspect_model
from octavo.exporters.tensorrt_llm.model_weights import ModelWeights


def test_tensors_come_one_by_one() -> None:
    model = quantized_llama("NVFP4_DEFAULT_CFG", num_hidden_layers=8)
    description = plugins().describe_model(model)
    assert description is not None
    with octavo.finalized(model, "tensorrt_llm"):
        source = ModelWeights(
            model, inspect_model(model, False), False, model.config.to_dict(), WeightErrors()
        )
        family = family_for(source.config, None)
        checkpoint = Checkpoint(source, description, family, torch.bfloat16, None, False)
        before, most, total = _bytes_of_tensors(), 0, 0
        for name, tensor in checkpoint.tensors():
            total += tensor.nbytes
            if name.endswith("mlp.proj.weight"):
                most = max(most, _bytes_of_tensors() - before)

    assert 0 < most < total / 8, "of what was written, not even a block is kept"


def _bytes_of_tensors() -> int:
    """Return the bytes of all plain tensors that are alive."""
    gc.collect()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if type(t) in (Tensor, torch.nn.Parameter)
        and not t.is_meta  # other tests leave tensors without memory
    }
    return sum(storages.values())
