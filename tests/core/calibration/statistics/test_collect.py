"""Statistics that are collected once: quantizing from them gives what quantizing from the data gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_models import calibrated_state, quantizer_config, rows
from helpers.calibration_snapshot import snapshot
from helpers.tiny import tiny_llama, token_batches
from octavo import Statistics
from octavo.core.calibration import algorithms
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.statistics.input_statistics import SUMS

WITH_KV = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
FORMATS: dict[str, Any] = {
    "INT8": octavo.INT8_DEFAULT_CFG,
    "FP8 and its cache": WITH_KV,
    "NVFP4": octavo.NVFP4_DEFAULT_CFG,
    "INT4": octavo.INT4_BLOCKWISE_WEIGHT_ONLY_CFG,
    "MXFP4": octavo.MXFP4_DEFAULT_CFG,
}
BATCHES = token_batches()


class Nudge(Algorithm):
    """Move each weight by what its input looks like."""

    method = "nudge"
    num_tokens: int = 8

    def needs(self) -> Needs:
        return Needs(channels=True, gram=True, held_tokens=self.num_tokens)

    def run(self, calibration: Calibration) -> None:
        for problem in calibration.problems():
            known = problem.statistics
            assert known is not None
            moved = problem.weight() * (1 + problem.gram().diagonal() / (1 + known.mean_square()) / 1e4)
            moved = moved + problem.held_tokens().mean() * 1e-3 + known.mean_abs() * 1e-3
            problem.set_state(problem.state())
            calibration.set_weight(problem, problem.grid().round(moved))
            calibration.report(problem, "nudge", tokens=known.num_tokens)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algorithms.ALGORITHMS, "nudge", f"{__name__}:Nudge")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of the tiny Llama."""
    directory = tmp_path_factory.mktemp("statistics") / "llama"
    octavo.collect_statistics(tiny_llama(), BATCHES, quiet=True).save(directory)
    return directory


@contextmanager
def calls(model: nn.Module) -> Iterator[list[int]]:
    """The number of tokens of each call of a model."""
    seen: list[int] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(sum(value.numel() for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))

    with model.register_forward_pre_hook(look, with_kwargs=True):
        yield seen


def everything(model: nn.Module) -> dict[str, Any]:
    return {**calibrated_state(model), **{n: p.flatten().tolist() for n, p in model.named_parameters()}}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("algorithm", ["max", "nudge"])
def test_quantizing_from_statistics_equals_quantizing_from_data(
    kind: str, algorithm: str, saved: Path
) -> None:
    config = {**FORMATS[kind], "algorithm": algorithm}
    expected = octavo.quantize(tiny_llama(), config, BATCHES, quiet=True)
    model = tiny_llama()

    with calls(model) as seen:
        octavo.quantize(model, config, statistics=saved, quiet=True)

    assert everything(model) == everything(expected)
    assert max(seen) < BATCHES[0].numel(), "the tiny passes that look at dataflow, and no data"
    with torch.no_grad():
        assert torch.equal(model(BATCHES[0]).logits, expected(BATCHES[0]).logits)
    assert octavo.history(model)[-1].state["statistics"]["data"] == list(Statistics.load(saved).data)


def test_a_model_without_an_adapter_is_not_called_at_all() -> None:
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Flatten(), nn.Linear(16, 8))
    data = [rows(width=4)[:, :, None].expand(4, 4, 4) + i for i in range(2)]
    statistics = octavo.collect_statistics(model, data, quiet=True)

    with calls(model) as seen:
        octavo.quantize(model, "FP8_DEFAULT_CFG", statistics=statistics, quiet=True)

    assert seen == []
    assert calibrated_state(model)["0.input_quantizer.amax"] == [max(float(x.abs().max()) for x in data)]


def test_the_user_is_told(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    octavo.quantize(tiny_llama(), "INT8_DEFAULT_CFG", statistics=saved)

    assert f"octavo: calibrated from {saved} (model " in capsys.readouterr().err.split("\n")[0]


def test_collecting_leaves_the_model_as_it_was() -> None:
    model = tiny_llama()
    before = snapshot(model)

    def interrupted(_: nn.Module) -> None:
        model(BATCHES[0])
        raise KeyboardInterrupt

    octavo.collect_statistics(model, BATCHES, quiet=True)
    assert snapshot(model) == before
    with pytest.raises(KeyboardInterrupt):
        octavo.collect_statistics(model, interrupted, quiet=True)
    assert snapshot(model) == before


def test_layers_that_read_one_tensor_share_an_input(saved: Path) -> None:
    points = Statistics.load(saved).points
    attention = "model.layers.0.self_attn."

    shown = {points[f"{attention}{name}_proj.input_quantizer"] for name in "qkv"}

    assert len(shown) == 1
    assert points[f"{attention}k_bmm_quantizer"] == f"{attention}k_bmm_quantizer"
    assert "model.layers.0.mlp.gate_proj.output_quantizer" not in points


@pytest.mark.parametrize("budget", [1_000_000, "600kB"])
def test_passes_within_a_budget_collect_the_same(budget: Any, saved: Path) -> None:
    model = tiny_llama()
    with calls(model) as seen:
        found = octavo.collect_statistics(model, BATCHES, stats_budget=budget, quiet=True)
    whole = Statistics.load(saved)

    assert len(seen) > 2 * len(BATCHES)
    assert (found.model, found.data, found.points) == (whole.model, whole.data, whole.points)
    assert set(found.inputs) == set(whole.inputs)
    for name, one in found.inputs.items():
        assert torch.equal(one.gram(), whole.inputs[name].gram())
        assert torch.equal(one.held.tokens(), whole.inputs[name].held.tokens())


def test_data_that_changes_from_pass_to_pass_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)

    def shuffled(model: nn.Module) -> None:
        model(torch.randint(0, 32, (1, 8), generator=generator))

    with pytest.raises(
        octavo.CalibrationError, match=r"^the data differs from pass to pass \(fingerprints \w{16} and"
    ):
        octavo.collect_statistics(tiny_llama(), shuffled, stats_budget="600kB", quiet=True)


@pytest.mark.parametrize("parts", [2, 3])
def test_a_tiny_budget_gives_the_same_result_in_several_passes(parts: int) -> None:
    config = {**octavo.NVFP4_DEFAULT_CFG, "algorithm": "nudge"}
    expected = octavo.quantize(tiny_llama(), config, BATCHES, quiet=True)
    planned = octavo.plan(tiny_llama(), config)
    total = sum(size.total for size in planned.statistics)
    model = tiny_llama()

    with calls(model) as seen:
        octavo.quantize(model, config, BATCHES, quiet=True, stats_budget=2 * total // (2 * parts - 1))

    assert sum(number == BATCHES[0].numel() for number in seen) >= parts * len(BATCHES)
    assert everything(model) == everything(expected)
    rows = [octavo.history(m)[-1].state["report"]["weights"] for m in (model, expected)]
    assert sorted(map(str, rows[0])) == sorted(map(str, rows[1]))


def test_an_interrupt_in_a_second_pass_leaves_the_model_as_it_was() -> None:
    config = {**octavo.INT8_DEFAULT_CFG, "algorithm": "nudge"}
    model, passes = tiny_llama(), []
    before = snapshot(model)

    def loop(model: nn.Module) -> None:
        passes.append(1)
        model(BATCHES[0])
        if len(passes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        octavo.quantize(model, config, loop, quiet=True, stats_budget="700kB")

    assert len(passes) == 2
    assert snapshot(model) == before


@pytest.mark.parametrize("from_quantized", [True, False])
def test_a_budget_divides_blocks_too(from_quantized: bool) -> None:
    layerwise = {"enable": True, "get_qdq_activations_from_prev_layer": from_quantized}
    config = {**octavo.INT8_DEFAULT_CFG, "algorithm": {"method": "nudge", "layerwise": layerwise}}
    one, several = (
        octavo.quantize(tiny_llama(), config, BATCHES, quiet=True, stats_budget=budget)
        for budget in (None, "300kB")
    )

    assert everything(one) == everything(several)


def test_the_plan_says_what_statistics_take() -> None:
    config = {**octavo.NVFP4_DEFAULT_CFG, "algorithm": "nudge"}
    plan = octavo.plan(tiny_llama(), config, stats_budget="700kB")
    kept = octavo.collect_statistics(tiny_llama(), BATCHES, held_tokens=8, quiet=True)

    sizes = {size.name: size for size in plan.statistics}
    assert set(sizes) == {name for name, one in kept.inputs.items() if one.needs.gram} - {
        "lm_head.input_quantizer"
    }
    for name, size in sizes.items():
        one = kept.inputs[name]
        sums = sum(getattr(one, part).nbytes for part in SUMS)
        assert (size.channels, size.gram) == (sums, 4 * one.num_channels**2)
        assert size.held_tokens >= one.held.tokens().nbytes > 0
    total = sum(size.total for size in sizes.values())
    assert plan.to_json()["statistics"]["bytes"] == total
    assert f"  statistics of 8 distinct inputs: {total / 1e6:.2f} MB (channels 0.04 MB, " in plan.summary()
    assert "; 2 passes over the data within the budget of 0.70 MB" in plan.summary()
    assert octavo.plan(tiny_llama(), octavo.NVFP4_DEFAULT_CFG).statistics == ()


def test_outputs_are_looked_at_by_option() -> None:
    config = quantizer_config(output_quantizer={"num_bits": 8, "axis": None})
    model = nn.Sequential(nn.Linear(32, 32))
    without, having = (
        octavo.collect_statistics(model, [rows()], outputs=outputs, quiet=True) for outputs in (False, True)
    )

    with pytest.raises(
        octavo.CalibrationError,
        match=r"nothing of 1 quantizers: 0\.output_quantizer; .* outputs=True \(--outputs\)",
    ):
        octavo.quantize(model, config, statistics=without, quiet=True)
    octavo.quantize(model, config, statistics=having, quiet=True)
