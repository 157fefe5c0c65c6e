"""Stacked experts in plans: names, shares, blocks and globs on single experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import octavo
from octavo.core.errors import ConfigError, PlanError

CONFIG = {
    "hidden_size": 64, "moe_intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 64, "num_experts": 4, "num_experts_per_tok": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = "model.layers.0.mlp.experts"


@pytest.fixture
def model() -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **CONFIG))
    return made


def with_entry(**entry: Any) -> dict[str, Any]:
    return octavo.merge_configs(octavo.FP8_DEFAULT_CFG, {"quant_cfg": [entry]})


def test_stacked_weights_are_covered(model: nn.Module) -> None:
    tensors = {tensor.name: tensor for tensor in octavo.plan(model, octavo.NVFP4_DEFAULT_CFG).tensors}

    gate_up, router = tensors[f"{EXPERTS}.gate_up_proj"], tensors["model.layers.0.mlp.gate.weight"]

    assert [str(spec) for spec in gate_up.weight] == ["e2m1 stacked block{-1:16} e4m3·global dynamic"]
    assert [str(spec) for spec in gate_up.inputs] == ["e2m1 block{-1:16} e4m3·global dynamic"]
    assert gate_up.bytes_after == 4 * (96 * 64 // 2 + 96 * 4 + 4)
    assert not router.weight


def test_blocks_that_do_not_divide_are_named(model: nn.Module) -> None:
    with pytest.raises(
        PlanError, match=rf"{EXPERTS}\.down_proj_weight_quantizer: last dim 48 .* block of 32"
    ):
        octavo.plan(model, octavo.MXFP8_DEFAULT_CFG).check()


@pytest.mark.parametrize("glob", ["*.experts.*", "*.experts.*.gate_proj.*|*.experts.*.up_proj.*", "*mlp*"])
def test_globs_know_experts_by_the_names_that_checkpoints_have(model: nn.Module, glob: str) -> None:
    entries = [{"quantizer_name": part, "enable": False} for part in glob.split("|")]
    config = octavo.merge_configs(octavo.FP8_DEFAULT_CFG, {"quant_cfg": entries})
    if "|" in glob:
        with pytest.raises(ConfigError, match=r"matches '.*experts\.0\.gate_proj.*' and 4 of 8 parts of"):
            octavo.plan(model, config)
        return

    tensors = {tensor.name: tensor for tensor in octavo.plan(model, config).tensors}

    assert not tensors[f"{EXPERTS}.gate_up_proj"].weight
    assert "turned off by" in tensors[f"{EXPERTS}.gate_up_proj"].reason


def test_a_glob_on_one_expert_is_refused(model: nn.Module) -> None:
    entry = {"quantizer_name": "*.experts.3.*", "enable": False}
    message = (
        rf"entry '\*\.experts\.3\.\*' matches '{EXPERTS}\.3\.gate_proj\.input_quantizer' and 2 of 8 parts of "
        rf"'{EXPERTS}\.gate_up_proj_input_quantizer'"
    )

    with pytest.raises(ConfigError, match=message):
        octavo.plan(model, with_entry(**entry))


def test_down_projections_alone(model: nn.Module) -> None:
    entry = {"quantizer_name": "*.down_proj.*", "enable": False}

    tensors = {tensor.name: tensor for tensor in octavo.plan(model, with_entry(**entry)).tensors}

    assert tensors[f"{EXPERTS}.gate_up_proj"].weight
    assert not tensors[f"{EXPERTS}.down_proj"].weight


def parameter(*shape: int, **options: Any) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, **options))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"down_proj": parameter(3, 64, 48, device="meta")},
            "gate_up_proj has 4 experts in float32 on meta; down_proj has 3 experts in float32 on meta",
        ),
        (
            {"down_proj": parameter(4, 64, 48, dtype=torch.float16)},
            "gate_up_proj has 4 experts in float32 on meta; down_proj has 4 experts in float16 on cpu",
        ),
        (
            {"gate_up_proj": parameter(4, 96, 32, device="meta")},
            "gate_up_proj maps 32 values to 96 and down_proj maps 48 to 64; "
            "expected gate_up_proj to map 64 to 96",
        ),
        (
            {name: parameter(8, *shape, device="meta") for name, shape in
             {"gate_up_proj": (96, 64), "down_proj": (64, 48)}.items()},
            "they have 8 experts and the layer routes to 4",
        ),
    ],
)  # fmt: skip
def test_parameters_that_disagree_are_refused(
    model: nn.Module, changes: dict[str, nn.Parameter], found: str
) -> None:
    for name, value in changes.items():
        setattr(model.get_submodule(EXPERTS), name, value)

    assert octavo.plan(model, octavo.FP8_DEFAULT_CFG).errors == (
        f"{EXPERTS}: its stacked parameters disagree: {found}. Repair the model, or leave these experts out "
        f"({{'quantizer_name': '*{EXPERTS}*', 'enable': False}})",
    )
    left_out = with_entry(quantizer_name=f"*{EXPERTS}*", enable=False)
    assert octavo.plan(model, left_out).errors == ()
