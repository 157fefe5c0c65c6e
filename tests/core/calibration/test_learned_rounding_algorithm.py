"""The `learned_rounding` algorithm on a Llama of two blocks, through the public API."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.tiny import tiny_llama
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.learned_rounding import LearnRounding
from octavo.core.calibration.run import run_algorithms
from octavo.core.calibration.solvers.sqnr import tensor_sqnr
from octavo.core.modes.record import last_record

TOKENS = [torch.randint(1, 64, (8, 24), generator=torch.Generator().manual_seed(i)) for i in range(2)]
INT3 = {"num_bits": 3, "block_sizes": {-1: 32}}
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
SHORT = {"method": "learned_rounding", "iterations": 4, "batch_size": 2}
BLOCKS = ("model.layers.0.", "model.layers.1.")


def sharp_llama() -> nn.Module:
    """A tiny Llama whose logits say something, so that rounding costs something."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = tiny_llama(**sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() == 2 else 1.0)
    return model


def config(weight: dict[str, Any], inputs: dict[str, Any] | None, *algorithms: Any) -> dict[str, Any]:
    quantizers = {
        "*weight_quantizer": weight,
        "*input_quantizer": inputs or {"enable": False},
        "*lm_head*": {"enable": False},
        "*embed_tokens*": {"enable": False},
    }
    return {"quant_cfg": quantizers, "algorithm": list(algorithms)}


def rows_of(model: nn.Module) -> list[dict[str, Any]]:
    record = last_record(model, "quantize")
    assert record is not None
    return [row for row in record.state["report"]["weights"] if row["algorithm"] == "learned_rounding"]


@torch.no_grad()
def divergence(model: nn.Module) -> float:
    tokens = TOKENS[1][-4:]  # those that judge: two batches of two sequences
    base, found = (m(input_ids=tokens).logits.log_softmax(-1).flatten(0, 1) for m in (sharp_llama(), model))
    return nn.functional.kl_div(found, base, reduction="batchmean", log_target=True).item()


@pytest.mark.parametrize("inputs", [None, NVFP4], ids=["weights", "weights and inputs"])
def test_blocks_learn_and_the_last_one_by_the_logits_of_the_whole_model(inputs: Any) -> None:
    options = {**SHORT, "iterations": 16, "reach": 0.4}
    model = octavo.quantize(sharp_llama(), config(INT3, inputs, options), TOKENS, quiet=True)

    rows = rows_of(model)
    by_block = [[row for row in rows if row["weight"].startswith(name)] for name in BLOCKS]
    assert [len(rows) for rows in by_block] == [7, 7]
    assert [rows[0]["loss"] for rows in by_block] == ["mse", "kl"]
    first, last = (rows[0] for rows in by_block)
    exact, new = (m.get_parameter(first["weight"]).detach() for m in (sharp_llama(), model))
    assert first["weight_sqnr_db"] == pytest.approx(tensor_sqnr(exact, new))
    assert first["best"] < first["start"]
    assert first["iteration"] > 0
    assert last["best"] <= last["start"]
    # What was trained is what the quantized model computes, from its inputs on.
    assert last["best"] == pytest.approx(divergence(model), rel=1e-3)


def test_without_logits_the_last_block_learns_by_its_outputs() -> None:
    model = sharp_llama().get_submodule("model")

    octavo.quantize(model, config(INT3, None, SHORT), TOKENS, quiet=True)

    assert {row["loss"] for row in rows_of(model)} == {"mse"}
    asked = octavo.quantize(sharp_llama(), config(INT3, None, {**SHORT, "logits": False}), TOKENS, quiet=True)
    assert {row["loss"] for row in rows_of(asked)} == {"mse"}


def test_the_start_stays_where_nothing_is_better() -> None:
    wild = {**SHORT, "reach": 80.0, "iterations": 2}
    start = octavo.quantize(sharp_llama(), config(INT3, None, "max"), TOKENS, quiet=True)
    learned = octavo.quantize(sharp_llama(), config(INT3, None, "max", wild), TOKENS, quiet=True)

    assert all(row["fallback"] and row["iteration"] == 0 for row in rows_of(learned))
    with torch.no_grad():
        assert torch.equal(*(model(input_ids=TOKENS[0]).logits for model in (start, learned)))


def test_the_same_seed_gives_the_same_weights_whatever_the_batches_of_the_data() -> None:
    one, other = (
        octavo.quantize(sharp_llama(), config(INT3, None, SHORT), data, quiet=True)
        for data in (TOKENS, [torch.cat(TOKENS)])
    )

    for name, weight in one.named_parameters():
        different = (weight != other.get_parameter(name)).float().mean().item()
        assert different < 0.01, name  # gradients near 0 may differ in sign


class Nudged(Algorithm):
    """Rounds down what is rounded to nearest now, and knows values that are about to be rounded up again."""

    method: ClassVar[str] = "nudged"
    codes: ClassVar[dict[str, Tensor]] = {}

    def run(self, calibration: Calibration) -> None:
        for problem in calibration.problems():
            grid = problem.grid()
            lower = grid.round(problem.rounded() - grid.step)
            problem.set_state(problem.state())
            calibration.unrounded[problem.name] = lower + 0.49 * grid.step
            calibration.set_weight(problem, lower)
            self.codes[problem.name] = grid.codes(lower)


def test_it_starts_from_what_the_algorithm_before_left_and_knew() -> None:
    """The fewer steps are needed back to the better codes, the nearer the start is to leaving the worse ones."""
    model = octavo.quantize(sharp_llama(), config(INT3, None, "max"), TOKENS, quiet=True)
    gentle = LearnRounding(iterations=4, batch_size=2, reach=0.05, range_reach=0)

    rows, _ = run_algorithms(model, [Nudged(), gentle], TOKENS, quiet=True)

    found = [row for row in rows if row["weight"].startswith(BLOCKS[0])]
    assert all(row["best"] < 0.9 * row["start"] for row in found)
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    quantizer = model.get_submodule("model.layers.0.mlp.up_proj").weight_quantizer
    assert torch.equal(quantizer(weight), weight)  # on its grid
    codes = weight / (quantizer.amax.repeat_interleave(32, -1) / 3)
    moved = (codes.detach().round() - Nudged.codes["model.layers.0.mlp.up_proj.weight"]).flatten()
    assert set(moved.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations=0: Input should be greater than or equal to 1"),
        ({"layerwise": {"enable": False}}, "it learns block by block, found layerwise.enable=False"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(octavo.ConfigError, match=message):
        octavo.quantize(sharp_llama(), config(INT3, None, {**SHORT, **options}), TOKENS, quiet=True)


def test_too_little_data_is_refused() -> None:
    with pytest.raises(octavo.CalibrationError, match="2 captured calls, of which held=2 judge the result"):
        octavo.quantize(sharp_llama(), config(INT3, None, SHORT), [TOKENS[0][:4]], quiet=True)
