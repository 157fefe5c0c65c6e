"""Statistics of experts: shared or their own, and what takes their place where an expert saw few tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import octavo
from octavo.core.calibration.experts import tokens_per_expert
from octavo.core.report.files import read_report

CONFIG = {
    "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "num_experts": 4,
    "num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NAME = "model.layers.1.mlp.experts"
TOKENS = torch.randint(3, 64, (4, 10), generator=torch.Generator().manual_seed(0))


def starving() -> nn.Module:
    """A mixture of experts whose last one is never chosen in the second block."""
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **CONFIG)).eval()
    route: Any = model.get_submodule("model.layers.1.mlp")
    gate = route.gate.forward

    def without_last(hidden: Tensor) -> Any:
        logits, weights, chosen = gate(hidden)
        return logits, weights, torch.where(chosen == 3, 0, chosen)

    route.gate.forward = without_last
    return model


def quantized(**options: Any) -> nn.Module:
    config = {**octavo.INT8_DEFAULT_CFG, "algorithm": {"method": "nearest", **options}}
    return octavo.quantize(starving(), config, [TOKENS[:2], TOKENS[2:]], quiet=True)


def inputs_of(expert: int) -> tuple[Tensor, Tensor]:
    """Return the tokens that an expert is chosen for, and its hidden states."""
    model, calls = starving(), []
    layer: Any = model.get_submodule(NAME)
    with layer.register_forward_pre_hook(lambda _, args: calls.append(args)):
        for batch in (TOKENS[:2], TOKENS[2:]):
            model(batch)
    chosen = torch.cat([x.repeat_interleave((index == expert).sum(-1), 0) for x, index, _ in calls]).detach()
    gate, up = (chosen @ layer.gate_up_proj[expert].detach().T).chunk(2, -1)
    return chosen, torch.nn.functional.silu(gate) * up


@torch.no_grad()
def test_each_expert_has_statistics_of_its_own_tokens(nearest: dict[str, Any]) -> None:
    model = quantized(expert_statistics="own")

    counts = tokens_per_expert(model)[NAME]
    for expert in range(3):
        x, hidden = inputs_of(expert)
        up, down = nearest[f"{NAME}.gate_up_proj[{expert}]"], nearest[f"{NAME}.down_proj[{expert}]"]
        assert up.num_tokens == down.num_tokens == counts[expert] > 0
        torch.testing.assert_close(up.gram(), x.T @ x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(down.gram(), hidden.T @ hidden, rtol=1e-4, atol=1e-5)


def test_by_default_they_are_shared(nearest: dict[str, Any]) -> None:
    quantized()

    assert len({id(nearest[f"{NAME}.down_proj[{expert}]"]) for expert in range(4)}) == 1


@pytest.mark.parametrize(
    ("options", "ending", "algorithm"),
    [
        ({}, "solved with the inputs of all experts", "nearest"),
        ({"expert_fallback": "weight_only"}, "rounded to nearest", "max"),
        ({"all_experts": True}, "every token was shown to it", "nearest"),
    ],
    ids=["shared", "weight only", "forced"],
)
def test_a_starved_expert_is_in_the_report(
    nearest: dict[str, Any], tmp_path: Path, options: dict[str, Any], ending: str, algorithm: str
) -> None:
    model = quantized(expert_statistics="own", min_expert_tokens=5, **options)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    report = read_report(tmp_path / "out")
    starved = {row["weight"]: row for row in report["weights"] if row["fallback"]}
    assert list(starved) == [f"{NAME}.gate_up_proj[3]", f"{NAME}.down_proj[3]"]
    for row in starved.values():
        assert row["fallback"] == f"0 tokens, fewer than 5: {ending}"
        assert row["algorithms"] == [algorithm]
        assert row["weight_sqnr_db"] > 20
    assert report["totals"]["fallbacks"] == 2
    assert report["tokens_per_expert"][NAME] == [*tokens_per_expert(model)[NAME][:3].tolist(), 0]
    assert [
        text
        for text in report["warnings"]
        if text.startswith(f"{NAME}: 1 of 4 experts were never chosen (3)")
    ]
    assert (f"{NAME}.down_proj[3]" in nearest) == (algorithm == "nearest")
    if "all_experts" in options:
        assert nearest[f"{NAME}.down_proj[3]"].num_tokens == TOKENS.numel()


class Routed(nn.Module):
    """Experts that are layers of their own; the last one sees a single token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x[:5]).sum() + self.experts[1](x[5:]).sum() + self.experts[2](x[:1]).sum()


@pytest.mark.parametrize("fallback", ["shared", "weight_only"])
def test_layers_that_are_experts_have_the_same_threshold(
    nearest: dict[str, Any], fallback: str, tmp_path: Path
) -> None:
    algorithm = {"method": "nearest", "min_expert_tokens": 2, "expert_fallback": fallback}
    config = {**octavo.INT8_DEFAULT_CFG, "algorithm": algorithm}
    x = torch.randn(20, 16)

    model = octavo.quantize(Routed(), config, [x], quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    report = read_report(tmp_path / "out")
    ending = {"shared": "solved with the inputs of all experts", "weight_only": "rounded to nearest"}[
        fallback
    ]
    assert [row["fallback"] for row in report["weights"]] == [None, None, f"1 tokens, fewer than 2: {ending}"]
    assert report["tokens_per_expert"] == {"experts": [5, 15, 1]}
    torch.testing.assert_close(nearest["experts.1.weight"].gram(), x[5:].T @ x[5:])
    if fallback == "shared":
        expected = x.T @ x + x[:1].T @ x[:1]
        torch.testing.assert_close(nearest["experts.2.weight"].gram(), expected, rtol=1e-5, atol=1e-5)


def test_block_by_block_counts_are_those_of_every_block(nearest: dict[str, Any]) -> None:
    model = quantized(expert_statistics="own", layerwise={"enable": True})

    counts = tokens_per_expert(model)
    assert [int(found.sum()) for found in counts.values()] == [2 * TOKENS.numel()] * 2
    assert nearest[f"{NAME}.gate_up_proj[0]"].num_tokens == counts[NAME][0]


def test_a_threshold_is_positive() -> None:
    with pytest.raises(
        octavo.ConfigError, match=r"'max': min_expert_tokens=0: Input should be greater than or equal"
    ):
        octavo.quantize(
            Routed(), {**octavo.INT8_DEFAULT_CFG, "algorithm": {"method": "max", "min_expert_tokens": 0}}
        )
