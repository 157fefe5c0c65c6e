"""Why a parameter is left out, in the words of the config or of the layer's class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.plan_models import DOWN_PROJ, Q_PROJ, planned, shared_model, tensor
from octavo.core.plan import Plan

FP8 = {"num_bits": (4, 3)}


def reason(plan: Plan, name: str) -> str:
    return tensor(plan, name).reason


def test_by_an_entry() -> None:
    config = octavo.merge_configs(
        "INT8_DEFAULT_CFG",
        {"quant_cfg": [
            {"quantizer_name": "*mlp*", "enable": False},
            {"quantizer_name": "*down_proj*", "parent_class": "nn.Linear", "enable": False},
        ]},
    )  # fmt: skip
    plan = planned(config)

    assert reason(plan, "lm_head.weight") == "turned off by '*lm_head*'"
    assert reason(plan, "model.layers.0.mlp.up_proj.weight") == "turned off by '*mlp*'"
    assert reason(plan, f"{DOWN_PROJ}.weight") == "turned off by '*down_proj*' in nn.Linear"
    assert reason(plan, f"{Q_PROJ}.weight") == ""


def test_by_no_entry() -> None:
    plan = planned({"quant_cfg": [{"quantizer_name": "*q_proj.weight_quantizer", "cfg": FP8}]})

    assert reason(plan, "lm_head.weight") == "no entry of the config matches its weight"


def test_by_an_entry_of_the_older_form_that_says_nothing() -> None:
    plan = planned({"quant_cfg": {"default": {"enable": False}, "*q_proj.weight_quantizer": FP8, "*": {}}})

    assert reason(plan, "lm_head.weight") == "left off by '*', which does not say enable=True"


@pytest.mark.parametrize("quant_cfg", [
    {"*weight_quantizer": FP8, "*lm_head*": {"enable": False}, "default": {}},
    [{"quantizer_name": "*weight_quantizer", "cfg": FP8},
     {"quantizer_name": "*lm_head*", "cfg": {"num_bits": 8, "enable": False}}],
], ids=["older form", "inside cfg"])  # fmt: skip
def test_by_an_entry_whose_attributes_turn_off(quant_cfg: object) -> None:
    assert reason(planned({"quant_cfg": quant_cfg}), "lm_head.weight") == "turned off by '*lm_head*'"


def test_by_their_kind() -> None:
    plan = planned("INT8_DEFAULT_CFG", shared_model("qwen2"))

    assert reason(plan, "model.norm.weight") == "a vector (norm or bias)"
    assert reason(plan, f"{Q_PROJ}.bias") == "a vector (norm or bias)"
    assert reason(plan, "model.embed_tokens.weight") == "turned off by '*' in nn.Embedding"
    gemma = planned("INT8_DEFAULT_CFG", shared_model("gemma2"))
    key = "transformers.models.gemma2.modeling_gemma2:Gemma2TextScaledWordEmbedding"
    assert reason(gemma, "model.embed_tokens.weight").startswith(
        f"{key} has a forward of its own, unlike Embedding"
    )


class Scaled(nn.Linear):
    """Almost a linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Named(nn.Linear):
    """A linear layer with another name."""


def test_a_subclass_with_a_forward_of_its_own_is_reported() -> None:
    model = nn.ModuleDict({"scaled": Scaled(16, 16), "named": Named(16, 16), "plain": nn.Linear(16, 16)})
    plan = planned("INT8_DEFAULT_CFG", model)

    assert [t.name for t in plan.tensors if t.weight] == ["named.weight", "plain.weight"]
    assert reason(plan, "scaled.weight") == (
        f"{__name__}:Scaled has a forward of its own, unlike Linear: "
        "octavo.register(...) a quantized class for it"
    )


def test_parameters_that_no_layer_holds() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.ones(4, 4))
            self.linear = nn.Linear(4, 4)

    plan = planned("INT8_DEFAULT_CFG", Gated())

    assert reason(plan, "gate") == f"no quantized class for {__name__}:{Gated.__qualname__}"


def test_the_output_projection_of_torchs_own_attention_is_left_out() -> None:
    """Simulation leaves it as it is, so the plan must not promise it: 23 % of this model's parameters."""
    plan = planned(
        "INT8_WEIGHT_ONLY_CFG",
        nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2), "up": nn.Linear(16, 16)}),
    )

    assert reason(plan, "attention.out_proj.weight") != ""


@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_are_left_out(cls: type[nn.RNNBase]) -> None:
    plan = planned("INT8_DEFAULT_CFG", nn.ModuleDict({"recurrent": cls(8, 8), "head": nn.Linear(8, 8)}))

    assert [t.name for t in plan.tensors if t.weight] == ["head.weight"]
    for weight in ("weight_ih_l0", "weight_hh_l0"):
        assert reason(plan, f"recurrent.{weight}") == f"no quantized class for {cls.__name__}"
    (error,) = planned("INT8_DEFAULT_CFG", cls(8, 8)).errors
    assert error.endswith(f"Layers that cannot be quantized: 1 x no quantized class for {cls.__name__}")
