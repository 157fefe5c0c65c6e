"""`compensate`: what it gains, in which order it goes, what it leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_snapshot import snapshot
from helpers.family_cases import family_cases
from helpers.tiny import tiny_llama
from octavo.core.calibration import compensated_block
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.solvers.gptq import gptq
from octavo.core.calibration.solvers.sqnr import tensor_sqnr
from octavo.core.modules import quantized_layers

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
INT3 = octavo.with_block_size(octavo.OCTAVO_INT3_CFG, 32)


def tokens(seed: int) -> Tensor:
    return torch.randint(1, 64, (24, 48), generator=torch.Generator().manual_seed(seed))


def model(**changes: Any) -> nn.Module:
    """Two blocks whose weights are large enough to matter beside the residual stream."""
    found = tiny_llama(**{**SMALL, **changes})
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(8 if "layers" in name else 20)
    return found


def config(base: dict[str, Any] = INT3, **options: Any) -> dict[str, Any]:
    return {**base, "algorithm": {"method": "compensate", **options}}


def rows_of(quantized: nn.Module) -> dict[str, dict[str, Any]]:
    report = octavo.history(quantized)[-1].state["report"]
    return {row["weight"]: row for row in report["weights"]}


@torch.no_grad()
def error(quantized: nn.Module) -> float:
    """Squared error of the last hidden state on data that calibration did not see."""
    wanted, found = (m.model(tokens(9)).last_hidden_state for m in (model(), quantized))  # type: ignore[operator]
    return float((wanted - found).square().mean())


@torch.no_grad()
def gptq_from_one_pass() -> nn.Module:
    """Every weight by GPTQ for what the original model reads, with the scales of rounding to nearest."""
    from octavo.core.calibration.algorithm import Algorithm
    from octavo.core.calibration.run import run_algorithms
    from octavo.core.calibration.statistics import Needs

    class Gptq(Algorithm):
        def needs(self) -> Needs:
            return Needs(gram=True)

        def run(self, calibration: Calibration) -> None:
            for problem in calibration.problems():
                found = gptq(problem.weight(), problem.gram(), problem.grid()).weight
                problem.set_state(problem.state())
                calibration.set_weight(problem, found)

    found = octavo.quantize(model(), {**INT3, "algorithm": "max"}, quiet=True)
    run_algorithms(found, [Gptq()], [tokens(1)], quiet=True)
    return found


def test_each_part_lowers_the_error_on_other_data() -> None:
    def of(**options: Any) -> float:
        return error(octavo.quantize(model(), config(**options), [tokens(1)], quiet=True))

    alone = of(compensate_inputs=False, compensate_residual=False)
    inputs = of(compensate_residual=False)
    both = of()

    assert both < inputs < alone < error(gptq_from_one_pass())


@torch.no_grad()
def read_by(layer: nn.Module, whole: nn.Module) -> Tensor:
    read: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _, args: read.append(args[0])):
        whole(tokens(1))
    return read[0]


def test_layers_are_solved_in_the_order_they_run_for_what_rounded_ones_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solved, grams = [], {}
    original = compensated_block.round_group

    def spy(calibration: Any, problems: Any, statistics: Any, options: Any) -> None:
        solved.append([problem.layer_name.rpartition(".")[2] for problem in problems])
        grams[problems[0].layer_name] = statistics.gram
        original(calibration, problems, statistics, options)

    monkeypatch.setattr(compensated_block, "round_group", spy)
    monkeypatch.setattr(compensated_block, "_ONE_IN", 10**9)  # none held: the sums are over all tokens
    rounded_inputs = {"quantizer_name": "*.layers.*input_quantizer", "cfg": {"axis": None}}
    base = {"quant_cfg": [*INT3["quant_cfg"], rounded_inputs]}
    quantized = octavo.quantize(model(), config(base), tokens(1).split(8), quiet=True)

    order = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert [sorted(group) for group in solved] == [sorted(group) for group in order * 2]
    for name, gram in grams.items():  # the model that came out feeds each layer what it was solved for
        layer: Any = quantized.get_submodule(name)
        x = layer.input_quantizer(read_by(layer, quantized)).flatten(0, 1)
        torch.testing.assert_close(x.T @ x, gram, rtol=1e-3, atol=1e-4 * float(gram.abs().max()))


SUMS = {
    "Llama 2, 3": {"self_attn.o_proj": "post_attention_layernorm", "mlp.down_proj": ""},
    "Gemma 2": {"self_attn.o_proj": None, "mlp.down_proj": None},  # norms of their outputs
    "GPT-NeoX, Pythia": {"attention.dense": "", "mlp.dense_4h_to_h": ""},  # both beside each other
    "Granite": {"self_attn.o_proj": None, "mlp.down_proj": None},  # a factor on what is added
    "BERT": {"attention.output.dense": "attention.output.LayerNorm", "output.dense": "output.LayerNorm"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", SUMS)
def test_sums_are_found_without_knowing_the_family(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = family_cases()[family]
    if family == "Granite":
        case = replace(case, config={**case.config, "residual_multiplier": 0.2}, _built=[])
    monkeypatch.setattr(compensated_block, "round_group", lambda *_: None)
    found: dict[Any, Any] = {}
    find: Callable[..., None] = compensated_block._find_sums
    monkeypatch.setattr(
        compensated_block, "_find_sums", lambda b, g, sums: (find(b, g, sums), found.update(sums))
    )

    whole = case.model().to(dtype)
    octavo.quantize(whole, config(case.quant_config("INT4")), [case.batch()], quiet=True)

    assert {name: reader for (_, name), reader in found.items()} == SUMS[family]


def test_no_weight_is_worse_than_rounded_to_nearest_on_held_tokens() -> None:
    few = tokens(1)[:1, :17]  # one of them held: what fits the others need not fit this one
    plain = model()
    quantized = octavo.quantize(copy.deepcopy(plain), config(), [few], quiet=True)
    rows = rows_of(quantized).values()

    assert {row["chosen"] for row in rows} == {"compensate", "round to nearest"}
    for row in rows:
        is_worse = row["held_error"] > row["held_error_of_nearest"]
        assert row["chosen"] == ("round to nearest" if is_worse else "compensate")
        assert bool(row.get("fallback")) == is_worse
        exact, new = (m.get_parameter(row["weight"]).detach() for m in (plain, quantized))
        assert row["weight_sqnr_db"] == pytest.approx(tensor_sqnr(exact, new))


@pytest.mark.parametrize("group", [1, 5])
def test_an_interrupt_leaves_the_model_as_it_was(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = compensated_block.round_group, iter(range(9))

    def interrupted(*args: Any) -> None:
        original(*args)
        if next(count) == group:
            raise KeyboardInterrupt

    monkeypatch.setattr(compensated_block, "round_group", interrupted)
    found = model()
    before = snapshot(found)

    with pytest.raises(KeyboardInterrupt):
        octavo.quantize(found, config(), [tokens(1)], quiet=True)

    assert snapshot(found) == before
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in found.modules())


def test_experts_that_get_other_tokens_are_rounded_without_compensation() -> None:
    case = family_cases()["Mixtral"]
    options = config(case.quant_config("INT4"), sweeps=0)
    quantized = octavo.quantize(case.model(), options, [case.batch()], quiet=True)

    rows = rows_of(quantized)
    assert all("chosen" in row for row in rows.values())
    assert "model.layers.1.mlp.experts.down_proj[3]" in rows
    assert not any("gate.weight" in name for name in rows)


def test_layers_outside_blocks_keep_their_scales_and_say_so() -> None:
    found = model()
    rules = [*INT3["quant_cfg"], {"quantizer_name": "lm_head.weight_quantizer", "enable": True}]
    octavo.quantize(found, config({"quant_cfg": rules}, sweeps=0), [tokens(1)], quiet=True)

    assert rows_of(found)["lm_head.weight"]["reason"] == "outside the blocks"
    assert dict(quantized_layers(found))["lm_head"].weight_quantizer.amax.isfinite().all()  # type: ignore[operator,union-attr]


def test_it_cannot_run_on_a_whole_model() -> None:
    with pytest.raises(octavo.ConfigError, match=r"layerwise\.enable=False: Input should be True"):
        octavo.quantize(model(), config(layerwise={"enable": False}), [tokens(1)], quiet=True)


def test_values_that_are_not_finite_name_the_layer() -> None:
    found: Any = model()
    with torch.no_grad():
        found.model.embed_tokens.weight[5] = torch.nan
    with pytest.raises(
        octavo.CalibrationError, match=r"input of model\.layers\.0\.self_attn\.q_proj has NaN or infinite"
    ):
        octavo.quantize(found, config(compensate_residual=False), [tokens(1)], quiet=True)
