"""Which layers read the same tensor: by family map, by dataflow, and what happens when they differ."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

import octavo
from helpers.plan_models import Q_PROJ, WITH_MAP, WITHOUT_MAP, new_model, planned, shared_model
from octavo.core.errors import PlanError
from octavo.core.graph.groups import probe
from octavo.core.plugins import plugins

EXPECTED = tuple(
    group
    for index in range(2)
    for group in (
        (f"model.layers.{index}.mlp.gate_proj", f"model.layers.{index}.mlp.up_proj"),
        tuple(f"model.layers.{index}.self_attn.{letter}_proj" for letter in "kqv"),
    )
)


@pytest.mark.parametrize("model_type", [*WITH_MAP, *WITHOUT_MAP])
def test_groups_of_dense_decoders(model_type: str) -> None:
    assert (plugins().describe_model(shared_model(model_type)) is not None) == (model_type in WITH_MAP)
    assert planned("INT8_DEFAULT_CFG", shared_model(model_type)).groups == EXPECTED


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("model_type", WITH_MAP)
def test_map_and_dataflow_agree(model_type: str, device: str) -> None:
    model = shared_model(model_type, device)
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    description, inputs = plugins().describe_model(model), plugins().tiny_inputs(model)
    assert description is not None
    assert inputs is not None

    flow = probe(model, linears, inputs).groups()

    assert sorted(tuple(sorted(group)) for group in description.same_input) == list(EXPECTED)
    assert sorted(tuple(sorted(group)) for group in flow) == list(EXPECTED)


def test_only_quantized_weights_are_grouped() -> None:
    config = octavo.merge_configs(
        "INT8_DEFAULT_CFG",
        {"quant_cfg": [
            {"quantizer_name": "*k_proj*", "enable": False},
            {"quantizer_name": "*gate_proj.weight_quantizer", "enable": False},
        ]},
    )  # fmt: skip

    assert planned(config).groups == tuple(
        (f"model.layers.{index}.self_attn.q_proj", f"model.layers.{index}.self_attn.v_proj")
        for index in range(2)
    )


class Apart(nn.Module):
    """Stands for an MLP whose up projection reads a tensor of its own, unlike what the map of its family says."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.gate_proj(x) * self.up_proj(x + 0))
        return y


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_disagreement_shows_both(device: str) -> None:
    model: Any = new_model(device=device)
    model.model.layers[1].mlp = Apart(model.model.layers[1].mlp)

    with pytest.raises(PlanError) as caught:
        planned("INT8_DEFAULT_CFG", model)

    assert str(caught.value) == (
        "the family map 'llama' and the model's own dataflow disagree on which layers read the same tensor. "
        "Only in the map: [('model.layers.1.mlp.gate_proj', 'model.layers.1.mlp.up_proj')]. "
        "Only in the dataflow: []. Correct the map, or report the model"
    )


def test_a_disagreement_about_layers_that_are_left_out_is_none() -> None:
    model: Any = new_model(device="meta")
    model.model.layers[1].mlp = Apart(model.model.layers[1].mlp)
    config = octavo.merge_configs(
        "INT8_DEFAULT_CFG", {"quant_cfg": [{"quantizer_name": "*mlp*", "enable": False}]}
    )

    assert [group for group in planned(config, model).groups if Q_PROJ in group] == [EXPECTED[1]]
