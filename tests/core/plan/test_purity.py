"""Planning changes nothing; models that are quantized, or have no weights, are refused where that matters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.plan_models import new_model, planned, tokens
from octavo.core.errors import ModeError, PlanError


def snapshot(model: Any) -> dict[str, Any]:
    """Return everything of a model and of the process that planning might touch."""
    parameters = {name: (id(p), p.requires_grad, p._version, p.grad) for name, p in model.named_parameters()}
    modules = {
        name: (type(m), m.training, [*vars(m)], len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }
    rest = (model.config.to_dict(), model.config._attn_implementation, torch.get_rng_state().tolist())
    return {"parameters": parameters, "modules": modules, "rest": rest, "grad": torch.is_grad_enabled()}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_changes(device: str, training: bool) -> None:
    model = new_model(device=device)
    model.train(training)
    model.model.layers[0].eval()
    before = snapshot(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    config = octavo.merge_configs("NVFP4_DEFAULT_CFG", "FP8_KV_CFG")
    first, second = (planned(config, model, target="vllm", tp=2) for _ in range(2))

    assert snapshot(model) == before
    assert all(device == "meta" or torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert first.to_json() == second.to_json()


def test_a_refused_plan_changes_nothing_either() -> None:
    model = new_model(intermediate_size=200)
    before = snapshot(model)

    with pytest.raises(PlanError):
        octavo.quantize(model, "NVFP4_DEFAULT_CFG", [tokens()], quiet=True)

    assert snapshot(model) == before


def test_the_plans_config_is_a_copy() -> None:
    config = copy.deepcopy(octavo.INT8_DEFAULT_CFG)
    plan = planned(config)
    plan.config["quant_cfg"].clear()

    assert config == octavo.INT8_DEFAULT_CFG


def test_a_quantized_model_is_refused() -> None:
    model = octavo.quantize(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), "INT8_WEIGHT_ONLY_CFG", quiet=True
    )

    for verb in (octavo.plan, octavo.quantize):
        with pytest.raises(ModeError) as caught:
            verb(model, "INT8_WEIGHT_ONLY_CFG")
        assert str(caught.value) == (
            "the model is quantized already (2 layers, first '0'); call octavo.unquantize(model) first"
        )
    assert planned("INT8_WEIGHT_ONLY_CFG", octavo.unquantize(model)).errors == ()


def test_a_model_without_weights_is_planned_and_not_quantized() -> None:
    model = new_model(device="meta")

    assert planned("INT8_WEIGHT_ONLY_CFG", model).errors == ()
    with pytest.raises(PlanError) as caught:
        octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)
    assert str(caught.value) == (
        "21 parameters are on the meta device, without values (first 'model.embed_tokens.weight'); "
        "load the weights first. octavo.plan works on such a model"
    )


def test_what_is_planned_is_what_quantize_does() -> None:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
    model = new_model()
    plan = planned(config, model)
    octavo.quantize(model, config, [tokens()], quiet=True)
    formats = {
        name: quantizer.spec
        for name, quantizer in model.named_modules()
        if isinstance(quantizer, octavo.TensorQuantizer) and quantizer.enabled
    }

    assert formats == {
        layer.site.quantizer_name(quantizer): stage.spec
        for layer in plan.layers
        for quantizer, (stage,) in layer.quantizers.items()
    }
    assert sum(name.endswith("weight_quantizer") for name in formats) == sum(
        bool(t.weight) for t in plan.tensors
    )
