"""A config whose algorithm is None, without a default, or with an algorithm that is not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.config_rules import FP8, entry, weights
from helpers.plan_models import Q_PROJ, planned, tensor
from octavo.core.errors import OctavoError

NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
MODEL = nn.ModuleDict({"up": nn.Linear(32, 16)})


def with_inputs(cfg: Any, **options: Any) -> octavo.Plan:
    return planned(weights({"num_bits": 8}, entry("*input_quantizer", cfg), algorithm=None), MODEL, **options)


def test_static_activations_follow_each_tensor_and_the_plan_warns() -> None:
    plan = planned("W4A8_MXFP4_FP8_CFG")

    assert plan.errors == ()
    assert plan.warnings == (
        "the algorithm is None, so 14 static activation quantizers are never calibrated: they follow each tensor, and "
        "a checkpoint will have no scales for them (model.layers.0.self_attn.q_proj.input_quantizer, "
        "model.layers.0.self_attn.k_proj.input_quantizer and 12 more (14 in all))",
    )
    assert tensor(plan, f"{Q_PROJ}.weight").inputs == (octavo.QuantSpec("e4m3", dynamic=True),)
    assert planned({**octavo.W4A8_MXFP4_FP8_CFG, "algorithm": "max"}).warnings == ()


def test_caches_alone() -> None:
    plan = planned("FP8_KV_CFG")

    assert "4 static activation quantizers are never calibrated" in plan.warnings[0]
    assert all(spec.dynamic for specs in plan.other_quantizers().values() for spec in specs)


def test_a_second_level_has_nothing_to_follow() -> None:
    assert with_inputs(NVFP4).errors == (
        "up.input_quantizer: the per-tensor scale of e2m1 block{-1:16} e4m3·global dynamic needs calibration and the "
        "algorithm is None; set 'algorithm': 'max'",
    )


@pytest.mark.parametrize(
    "cfg", [{**FP8, "constant_amax": 2.0}, {**NVFP4, "use_constant_amax": True}], ids=str
)
def test_constants_need_no_calibration(cfg: dict[str, Any]) -> None:
    plan = with_inputs(cfg)

    assert (plan.errors, plan.warnings) == ((), ())
    assert plan.layers[0].quantizers["input_quantizer"][0].spec.dynamic == ("block_sizes" in cfg)


def test_dynamic_activations_and_weights_need_none() -> None:
    plan = with_inputs({**FP8, "type": "dynamic"})

    assert (plan.errors, plan.warnings) == ((), ())
    assert not tensor(plan, "up.weight").weight[0].dynamic


def test_what_is_quantized_then_follows_the_data() -> None:
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"up": nn.Linear(32, 16)}), torch.randn(4, 32)
    config = {"quant_cfg": [entry("*input_quantizer", FP8)], "algorithm": None}
    octavo.quantize(model, config, quiet=True)

    quantizer = model["up"].input_quantizer
    assert torch.equal(quantizer(x * 1024), quantizer(x) * 1024)


NOTE = (
    "the dict form has no 'default': quantizers that no glob matches stay off, where ModelOpt would run them as INT8. "
    "Add 'default': {'enable': False} to say so"
)


@pytest.mark.parametrize(
    ("more", "expected"),
    [({}, (NOTE,)), ({"default": {"enable": False}}, ()), ({"*": {"enable": False}}, ())],
    ids=str,
)
def test_the_older_form_without_a_default(more: dict[str, Any], expected: tuple[str, ...]) -> None:
    quant_cfg = {**more, "*weight_quantizer": {"num_bits": 8, "enable": True}}

    assert planned({"quant_cfg": quant_cfg}, MODEL).warnings == expected


@pytest.mark.parametrize(
    ("algorithm", "named"), [("lsq", "lsq"), ("mxa", "mxa"), ({"method": "max", "x": 1}, "x")]
)
def test_an_algorithm_that_cannot_run(algorithm: Any, named: str) -> None:
    with pytest.raises(OctavoError, match=named):
        planned(weights({"num_bits": 8}, algorithm=algorithm), MODEL).check()
