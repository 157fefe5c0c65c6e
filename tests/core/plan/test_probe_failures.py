"""A model whose tiny forward pass fails is planned all the same, and the plan says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.plan_models import SIZES, planned


def failing(error: Exception, model_type: str = "llama") -> LlamaForCausalLM:
    """A Llama whose forward raises, under the name of a family with a map or without one."""

    class Failing(LlamaForCausalLM):
        def forward(self, *_: Any, **__: Any) -> Any:
            raise error

    config = LlamaConfig(**SIZES)
    config.model_type = model_type
    return Failing(config)


def test_the_note_gives_the_reason_and_the_map_stands_in() -> None:
    plan = planned("INT8_DEFAULT_CFG", failing(RuntimeError("no kernel for this device\nwith a long trace")))

    assert plan.warnings == ("the dataflow probe could not run (RuntimeError: no kernel for this device)",)
    assert len(plan.groups) == 4
    assert plan.errors == ()


@pytest.mark.parametrize(
    "error", [NotImplementedError("later"), TypeError("later"), ValueError("later")], ids=repr
)
def test_without_a_map_there_are_no_groups(error: Exception) -> None:
    plan = planned("INT8_DEFAULT_CFG", failing(error, "unheard_of"))

    failed, unshared = plan.warnings
    assert failed == f"the dataflow probe could not run ({type(error).__name__}: later)"
    assert unshared.startswith(
        "which of 14 layers read the same tensor is unknown (model.layers.0.self_attn.q_proj, "
    )
    assert "keep per-tensor scales of their own, where the engine takes one for all" in unshared
    assert plan.groups == ()


@pytest.mark.parametrize(
    ("config", "number"), [("FP8_DEFAULT_CFG", 1), ("NVFP4_DEFAULT_CFG", 1), ("MXFP8_DEFAULT_CFG", 0)]
)
def test_models_that_no_adapter_can_run_and_scales_of_whole_tensors(config: str, number: int) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))

    assert len(planned(config, model).warnings) == number
    assert planned(config, model[:1]).warnings == ()


def test_memory_that_runs_out_is_no_note() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        planned("INT8_DEFAULT_CFG", failing(torch.OutOfMemoryError("CUDA out of memory")))


def test_training_flags_are_as_they_were() -> None:
    model = failing(RuntimeError("later")).train()
    planned("INT8_DEFAULT_CFG", model)

    assert all(module.training for module in model.modules())


def test_an_exception_without_a_message() -> None:
    plan = planned("INT8_DEFAULT_CFG", failing(NotImplementedError()))

    assert "NotImplementedError" in plan.warnings[0]


@pytest.mark.parametrize(
    "error",
    [KeyError("position_ids"), AttributeError("cache"), AssertionError("shape"), IndexError("mask")],
    ids=repr,
)
def test_other_exceptions(error: Exception) -> None:
    try:
        warnings = planned("INT8_DEFAULT_CFG", failing(error)).warnings
    except type(error):
        warnings = ()

    assert type(error).__name__ in " ".join(warnings)
