"""A plan lists every parameter of a model once, with its format or the reason why it has none."""

from __future__ import annotations

import pytest
from torch import nn

import octavo
from helpers.plan_models import (
    DOWN_PROJ,
    Q_PROJ,
    WITH_MAP,
    WITHOUT_MAP,
    new_model,
    planned,
    shared_model,
    tensor,
)
from octavo.core.formats import PerChannel, QuantSpec

INT8_ROWS, INT8 = QuantSpec("int8", PerChannel(0)), QuantSpec("int8")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("model_type", [*WITH_MAP, *WITHOUT_MAP])
def test_each_parameter_appears_once(model_type: str, device: str) -> None:
    model = shared_model(model_type, device)
    plan = planned("INT8_DEFAULT_CFG", model)
    parameters = dict(model.named_parameters())

    assert [t.name for t in plan.tensors] == list(parameters)
    assert (plan.errors, plan.warnings) == ((), ())
    for t in plan.tensors:
        parameter = parameters[t.name]
        assert (t.shape, t.dtype) == (tuple(parameter.shape), "float32")
        assert t.num_values == parameter.numel()
        assert t.bytes_before == 4 * parameter.numel()
        assert bool(t.weight) != bool(t.reason), "a format or a reason, never both or neither"
        in_layer = t.name.startswith("model.layers.") and t.name.endswith("_proj.weight")
        assert (t.weight, t.inputs) == (((INT8_ROWS,), (INT8,)) if in_layer else ((), ()))


@pytest.mark.parametrize("model_type", [*WITH_MAP, *WITHOUT_MAP])
def test_a_model_without_weights_is_planned_as_the_real_one(model_type: str) -> None:
    config = octavo.merge_configs("NVFP4_DEFAULT_CFG", "FP8_KV_CFG")
    real, meta = (planned(config, shared_model(model_type, device)) for device in ("cpu", "meta"))

    assert real.to_json() == meta.to_json()
    assert real.groups != ()


def test_shares_and_sizes_add_up() -> None:
    model = shared_model()
    plan = planned("INT8_WEIGHT_ONLY_CFG", model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    rows = {name: parameter.shape[0] for name, parameter in model.named_parameters()}
    covered = {name for name in sizes if name.endswith("_proj.weight")}

    assert plan.coverage == sum(sizes[name] for name in covered) / sum(sizes.values())
    assert plan.bytes_before == 4 * sum(sizes.values())
    assert plan.bytes_after == sum(
        sizes[name] + 4 * rows[name] if name in covered else 4 * sizes[name] for name in sizes
    )


def test_tied_weights_are_listed_once() -> None:
    plan = planned("INT8_DEFAULT_CFG", new_model(tie_word_embeddings=True))

    assert [t.name for t in plan.tensors if t.shape == (128, 128) and not t.weight] == [
        "model.embed_tokens.weight"
    ]
    assert not any(t.name.startswith("lm_head") for t in plan.tensors)


def test_plain_modules() -> None:
    plan = planned(
        "INT8_DEFAULT_CFG", nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8, bias=False))
    )

    assert [(t.name, t.shape, t.dtype, t.weight, t.inputs) for t in plan.tensors] == [
        ("0.weight", (16, 32), "float32", (INT8_ROWS,), (INT8,)),
        ("0.bias", (16,), "float32", (), ()),
        ("2.weight", (8, 16), "float32", (INT8_ROWS,), (INT8,)),
    ]
    assert plan.groups == ()
    assert plan.coverage == (512 + 128) / (512 + 16 + 128)


def test_a_model_that_is_itself_a_layer() -> None:
    plan = planned("INT8_DEFAULT_CFG", nn.Linear(32, 16))

    assert [(t.name, bool(t.weight)) for t in plan.tensors] == [("weight", True), ("bias", False)]


def test_mixed_formats() -> None:
    config = octavo.merge_configs(
        "FP8_DEFAULT_CFG",
        {
            "quant_cfg": [
                {"quantizer_name": "*mlp*weight_quantizer", "cfg": {"num_bits": 4, "block_sizes": {-1: 32}}}
            ]
        },
        {"quant_cfg": [{"quantizer_name": "*mlp*input_quantizer", "enable": False}]},
    )
    plan = planned(config)

    assert [str(spec) for spec in tensor(plan, f"{DOWN_PROJ}.weight").weight] == ["int4 block{-1:32}"]
    assert tensor(plan, f"{DOWN_PROJ}.weight").inputs == ()
    assert [str(spec) for spec in tensor(plan, f"{Q_PROJ}.weight").inputs] == ["e4m3 tensor"]


def test_quantizers_of_attention_and_outputs() -> None:
    config = octavo.merge_configs(
        "INT8_WEIGHT_ONLY_CFG",
        "FP8_KV_CFG",
        {"quant_cfg": [{"quantizer_name": "*1.mlp.down_proj.output_quantizer", "cfg": {"num_bits": 8}}]},
    )
    others = planned(config).other_quantizers()

    assert {name: [str(spec) for spec in specs] for name, specs in others.items()} == {
        f"{DOWN_PROJ}.output_quantizer": ["int8 tensor"],
        **{
            f"model.layers.{i}.self_attn.{letter}_bmm_quantizer": ["e4m3 tensor"]
            for i in (0, 1)
            for letter in "kv"
        },
    }


INPUTS_ONLY = {"quant_cfg": [{"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8}}]}


def test_inputs_of_layers_whose_weight_stays() -> None:
    plan = planned(INPUTS_ONLY)

    assert {layer.site.name: layer.quantizers.keys() for layer in plan.layers}[Q_PROJ] == {"input_quantizer"}
    assert tensor(plan, f"{Q_PROJ}.weight").inputs == (INT8,)
    assert plan.summary().splitlines()[:2] == [
        f"0 weights quantized, 0.0% of all parameters; {plan.bytes_before / 1e6:.2f} MB -> "
        f"{plan.bytes_before / 1e6:.2f} MB",
        "  15 x inputs int8 tensor",
    ]
