"""A plan as data and as text."""

from __future__ import annotations

import json

import octavo
from helpers.plan_models import Q_PROJ, new_model, planned
from octavo.core.formats import QuantSpec

CONFIG = octavo.merge_configs("NVFP4_DEFAULT_CFG", "FP8_KV_CFG")


def test_json_holds_everything() -> None:
    plan = planned(CONFIG, target="trtllm", tp=8)
    data = json.loads(json.dumps(plan.to_json(), allow_nan=False))

    sizes = ["version", "coverage", "bytes_before", "bytes_after"]
    rest = [
        "tensors",
        "other_quantizers",
        "transforms",
        "groups",
        "exporter",
        "statistics",
        "errors",
        "warnings",
    ]
    assert list(data) == [*sizes, *rest]
    assert (data["version"], data["coverage"], data["bytes_after"]) == (1, plan.coverage, plan.bytes_after)
    assert data["exporter"] == "unified_hf"
    assert data["errors"] == ["4 attention heads cannot be split over tp=8"]
    assert data["groups"] == [list(group) for group in plan.groups]
    assert sorted(data["other_quantizers"]) == sorted(plan.other_quantizers())
    (found,) = (t for t in data["tensors"] if t["name"] == f"{Q_PROJ}.weight")
    assert [QuantSpec.from_json(spec) for spec in found["weight"] + found["inputs"]] == [
        spec for t in plan.tensors if t.name == found["name"] for spec in (*t.weight, *t.inputs)
    ]
    assert (found["shape"], found["dtype"], found["reason"]) == ([128, 128], "float32", "")
    (left,) = (t for t in data["tensors"] if t["name"] == "lm_head.weight")
    assert (left["weight"], left["reason"]) == ([], "turned off by '*lm_head*'")
    assert left["bytes_before"] == left["bytes_after"] == 4 * 128 * 128


def test_the_summary_in_full() -> None:
    config = octavo.merge_configs(CONFIG, {"quant_cfg": [{"quantizer_name": "*1.mlp.*", "enable": False}]})
    plan = planned(config, new_model(device="meta", head_dim=24), tp=3)
    nvfp4 = "e2m1 block{-1:16} e4m3·global dynamic"

    assert plan.summary().splitlines() == [
        f"11 weights quantized, {plan.coverage:.1%} of all parameters; "
        f"{plan.bytes_before / 1e6:.2f} MB -> {plan.bytes_after / 1e6:.2f} MB",
        f"  11 x weights {nvfp4}, inputs {nvfp4}",
        "  2 x k_bmm_quantizer e4m3 tensor",
        "  2 x v_bmm_quantizer e4m3 tensor",
        "  left out: model.embed_tokens.weight (turned off by '*' in nn.Embedding)",
        "  left out: model.layers.1.mlp.gate_proj.weight, model.layers.1.mlp.up_proj.weight, "
        "model.layers.1.mlp.down_proj.weight (turned off by '*1.mlp.*')",
        "  left out: lm_head.weight (turned off by '*lm_head*')",
        *(f"  error: {text}" for text in plan.errors),
    ]
    assert len(plan.errors) > 1
    assert str(plan) == plan.summary()


def test_warnings_and_long_lists() -> None:
    entries = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*mlp.up_proj.weight_quantizer", "cfg": [{"num_bits": 4}, {"num_bits": 8}]},
        {"quantizer_name": "*of_another_model*", "enable": False},
    ]
    lines = planned({"quant_cfg": entries}).summary().splitlines()

    assert lines[1] == "  2 x weights int4 tensor then int8 tensor"
    assert lines[2] == "  left out: model.embed_tokens.weight … lm_head.weight, 14 in all (turned off by '*')"
    assert lines[3:] == ["  warning: entry '*of_another_model*' matches no quantizer of this model."]


def test_large_models_are_counted_in_megabytes_with_separators() -> None:
    model = new_model(device="meta", vocab_size=400_000, hidden_size=1024, num_attention_heads=32)

    assert f"{planned(CONFIG, model).bytes_before / 1e6:,.2f} MB ->" in planned(CONFIG, model).summary()
    assert planned(CONFIG, model).summary().splitlines()[0].count(",") == 3
