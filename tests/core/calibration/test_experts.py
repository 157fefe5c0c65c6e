"""Experts in calibration: tokens are counted, and no expert is left without scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import octavo
from helpers.calibration_models import calibrated_state
from octavo.core.calibration.experts import counting_tokens, tokens_per_expert

CONFIG = {
    "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "num_experts": 8,
    "num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NAME = "model.layers.0.mlp.experts"


def stacked() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **CONFIG))
    return model.eval()


class Modules(nn.Module):
    """Experts of which each is a layer, all tokens going to those in `chosen`."""

    def __init__(self, chosen: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(3))
        self.chosen = chosen

    def forward(self, x: Tensor) -> Tensor:
        return sum((self.experts[i](x * (i + 1)) for i in self.chosen), torch.zeros_like(x))


def test_tokens_are_counted_per_expert() -> None:
    model = stacked()
    ids = torch.arange(20).reshape(2, 10)
    chosen: list[Tensor] = []
    hook = model.get_submodule(NAME).register_forward_pre_hook(lambda _, args: chosen.append(args[1]))
    model(ids)
    hook.remove()

    octavo.quantize(model, octavo.FP8_DEFAULT_CFG, [ids], quiet=True)

    expected = torch.bincount(chosen[0].flatten(), minlength=8)
    assert tokens_per_expert(model)[NAME].tolist() == expected.tolist()
    assert int(expected.sum()) == 40


def test_experts_that_were_never_chosen_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    model = octavo.quantize(stacked(), octavo.FP8_DEFAULT_CFG, [torch.tensor([[5]])])

    counts = tokens_per_expert(model)[NAME]
    never = (counts == 0).nonzero().flatten().tolist()

    assert len(never) == 6
    assert f"{NAME}: 6 of 8 experts were never chosen" in capsys.readouterr().err


def test_every_token_may_be_shown_to_every_expert() -> None:
    model: Any = octavo.quantize(stacked(), octavo.FP8_DEFAULT_CFG, [torch.tensor([[5]])], quiet=True)
    seen: list[int] = []
    quantizer = model.get_submodule(NAME).down_proj_input_quantizer
    plain = model(torch.tensor([[5, 6]])).logits
    observe = quantizer.observe
    quantizer.observe = lambda x: (seen.append(len(x)), observe(x))[1]

    with counting_tokens(model, all_experts=True):
        shown = model(torch.tensor([[5, 6]])).logits

    assert seen[-8:] == [2] * 8
    assert torch.equal(shown, plain)


def test_unquantizing_leaves_no_counts() -> None:
    model = octavo.quantize(stacked(), octavo.FP8_DEFAULT_CFG, [torch.tensor([[5]])], quiet=True)
    before = set(stacked().get_submodule(NAME).__dict__)

    octavo.unquantize(model)

    assert set(model.get_submodule(NAME).__dict__) == before


def test_layers_of_experts_that_no_token_reached_get_the_largest_scale_of_the_others() -> None:
    data = torch.full((1, 16), 2.0)

    model: Any = octavo.quantize(Modules((0, 2)), octavo.FP8_DEFAULT_CFG, [data], quiet=True)

    assert [expert.input_quantizer.amax.item() for expert in model.experts] == [2.0, 6.0, 6.0]


def test_where_no_expert_saw_a_token_the_weight_is_taken() -> None:
    model: Any = octavo.quantize(Modules(()), octavo.FP8_DEFAULT_CFG, [torch.ones(1, 16)], quiet=True)

    for expert in model.experts:
        assert expert.input_quantizer.amax == expert.weight.abs().max()


@pytest.mark.parametrize("all_experts", [False, True])
def test_statistics_of_experts_stand_for_the_data(all_experts: bool) -> None:
    config = {**octavo.NVFP4_DEFAULT_CFG, "algorithm": {"method": "max", "all_experts": all_experts}}
    data = [torch.randint(3, 64, (1, 3))]
    expected = octavo.quantize(stacked(), config, data, quiet=True)
    statistics = octavo.collect_statistics(stacked(), data, all_experts=all_experts, quiet=True)

    model = octavo.quantize(stacked(), config, statistics=statistics, quiet=True)

    assert calibrated_state(model) == calibrated_state(expected)
    assert torch.equal(tokens_per_expert(model)[NAME], tokens_per_expert(expected)[NAME])
    other = {**config, "algorithm": {"method": "max", "all_experts": not all_experts}}
    with pytest.raises(octavo.CalibrationError, match=f"expected all_experts={not all_experts}"):
        octavo.quantize(stacked(), other, statistics=statistics, quiet=True)


def test_experts_that_saw_no_token_get_the_same_scales_from_statistics() -> None:
    data = [torch.randn(4, 16)]
    expected = octavo.quantize(Modules((0, 2)), "FP8_DEFAULT_CFG", data, quiet=True)
    statistics = octavo.collect_statistics(Modules((0, 2)), data, quiet=True)

    model = octavo.quantize(Modules((0, 2)), "FP8_DEFAULT_CFG", statistics=statistics, quiet=True)

    assert calibrated_state(model) == calibrated_state(expected)


class Unequal(nn.Module):
    """Experts of different widths, the last of which sees no token."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(32, width), nn.Linear(width, 32)) for width in widths]
        self.experts = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return sum((expert(x) for expert in self.experts[:-1]), torch.zeros_like(x))


@pytest.mark.parametrize("axis", [None, -1])
@pytest.mark.parametrize(("widths", "other"), [((16, 48, 16), 0), ((16, 48, 64), None)])
def test_experts_of_different_widths(axis: int | None, widths: tuple[int, ...], other: int | None) -> None:
    config = octavo.merge_configs(
        "INT8_DEFAULT_CFG",
        {"quant_cfg": [{"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": axis}}]},
    )
    model: Any = octavo.quantize(Unequal(*widths), config, [torch.randn(8, 32)], quiet=True)

    found = [expert[1].input_quantizer.amax for expert in model.experts]
    if axis is None:
        assert found[2] == max(found[:2])
    elif other is not None:
        assert torch.equal(found[2], found[other])
    else:  # the weight's own
        assert torch.equal(found[2], model.experts[2][1].weight.abs().max().expand(64))
