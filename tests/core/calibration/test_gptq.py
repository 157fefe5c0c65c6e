"""The algorithm `gptq` on models: what it stores, that it is never worse, and what it says where it cannot help."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import octavo
from helpers.solver_problems import FORMATS
from helpers.tiny import tiny_llama, token_batches
from octavo.core.calibration.gptq import Gptq
from octavo.core.calibration.run import run_algorithms
from octavo.core.calibration.solvers.gptq import gptq
from octavo.core.calibration.solvers.grid import Grid
from octavo.core.config.spec_attributes import spec_attributes
from octavo.core.errors import CalibrationError
from octavo.core.modules import quantized_layers

OURS: dict[str, Any] = {"act_order": True, "scales": "search", "sweeps": 2}
PRESETS: list[tuple[str, dict[str, Any]]] = [
    ("INT8_DEFAULT_CFG", {}),
    ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", OURS),
    ("FP8_DEFAULT_CFG", OURS),
    ("NVFP4_DEFAULT_CFG", {}),
    ("MXFP4_DEFAULT_CFG", OURS),
]


class Siblings(nn.Module):
    """Two layers that read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(32, 16, bias=False), nn.Linear(32, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], -1)


def correlated(count: int, seed: int = 0, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mixing


def config(weights: dict[str, Any], algorithm: Any, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    rules = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": weights},
    ]
    if inputs is not None:
        rules.append({"quantizer_name": "*input_quantizer", "cfg": inputs})
    return {"quant_cfg": rules, "algorithm": algorithm}


def rows_of(model: nn.Module) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = octavo.history(model)[-1].state["report"]["weights"]
    return found


@pytest.mark.parametrize(("preset", "options"), PRESETS, ids=[preset for preset, _ in PRESETS])
def test_it_helps_every_format(preset: str, options: dict[str, Any]) -> None:
    original, data = tiny_llama(num_hidden_layers=1), token_batches(4)
    chosen = octavo.with_block_size(preset, 32) if preset.startswith("INT4") else octavo.preset(preset)

    algorithm = {"method": "gptq", **options}
    model = octavo.quantize(
        tiny_llama(num_hidden_layers=1), {**chosen, "algorithm": algorithm}, data, quiet=True
    )

    rows = rows_of(model)
    kept = [row["weight"] for row in rows if row.get("fallback")]
    assert len(rows) == 7
    assert len(kept) <= 1
    assert sum(row["error_after"] for row in rows) < 0.95 * sum(row["error_before"] for row in rows)
    weights = dict(original.named_parameters())
    for name, layer in quantized_layers(model):
        quantizer: Any = layer.quantizers()["weight_quantizer"]
        for weight in layer.quantized_weights().values():
            rounded = quantizer(weight)
            if f"{name}.weight" not in kept:
                assert torch.equal(rounded, weight)
            assert (rounded - weights[f"{name}.weight"]).norm() < 0.5 * weights[f"{name}.weight"].norm()


def test_joined_layers_equal_the_solver_on_each() -> None:
    torch.manual_seed(0)
    model, data = Siblings(), [correlated(100)]
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    octavo.quantize(model, config({"num_bits": 4, "axis": 0}, "max"), quiet=True)

    run_algorithms(model, [Gptq(perc_damp=0.05)], data, quiet=True, groups=[["left", "right"]])

    for name, layer in quantized_layers(model):
        quantizer: Any = layer.quantizers()["weight_quantizer"]
        weight = weights[f"{name}.weight"]
        grid = Grid.of(quantizer.named_state(), quantizer.spec, tuple(weight.shape))
        expected = gptq(weight, data[0].T @ data[0], grid, act_order=False, damping=0.05)
        torch.testing.assert_close(layer.weight, expected.weight, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    count=st.integers(1, 60),
    seed=st.integers(0, 1000),
    options=st.sampled_from([{}, OURS, {"scales": "search"}, {"act_order": True, "perc_damp": 1.0}]),
    inputs=st.sampled_from([None, {"num_bits": 8}, {"num_bits": 3}]),
)
@example(name="int8", count=40, seed=0, options={}, inputs={"num_bits": 3})
@example(name="fp8", count=40, seed=3, options=OURS, inputs={"num_bits": 3})
def test_never_worse_than_rounding_to_nearest(
    name: str, count: int, seed: int, options: dict[str, Any], inputs: dict[str, Any] | None
) -> None:
    torch.manual_seed(seed)
    plain, data = nn.Sequential(nn.Linear(32, 24, bias=False)), correlated(count, seed)
    weight = plain[0].weight.detach().clone()
    attributes = spec_attributes(FORMATS[name])
    if name == "mxfp4":
        attributes["block_sizes"]["type"] = "dynamic"
    nearest, solved = (
        octavo.quantize(_copy(plain), config(attributes, algorithm, inputs), [data], quiet=True)
        for algorithm in ("max", {"method": "gptq", **options})
    )

    def errors(model: Any) -> tuple[float, float]:
        rounded = model[0].weight_quantizer(model[0].weight)
        exact = (data @ (rounded - weight).T).double().square().sum()
        return float(exact), float((model(data) - data @ weight.T).double().square().sum())

    with torch.no_grad():
        for found, limit in zip(errors(solved), errors(nearest), strict=True):
            assert found <= limit * (1 + 1e-4) + 1e-6


def test_a_result_that_is_worse_on_held_tokens_is_not_used() -> None:
    """Inputs of three bits are off by more than what GPTQ gains on INT8."""
    torch.manual_seed(0)
    model, rules = nn.Sequential(nn.Linear(32, 24, bias=False)), {"num_bits": 8, "axis": 0}
    weight = model[0].weight.detach().clone()

    octavo.quantize(model, config(rules, "gptq", {"num_bits": 3}), [correlated(40)], quiet=True)

    (row,) = rows_of(model)
    assert row["fallback"] == "round-to-nearest: the result was worse on all tokens or on the held ones"
    assert row["error_after"] == row["error_before"]
    assert torch.equal(model[0].weight, weight)


def test_few_tokens_and_dead_columns_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    data = correlated(5)
    data[:, 3] = 0

    model = octavo.quantize(
        nn.Sequential(nn.Linear(32, 16)), config({"num_bits": 4, "axis": 0}, "gptq"), [data]
    )

    (row,) = rows_of(model)
    assert (row["tokens"], row["channels"], row["dead_columns"], row["damping"]) == (5, 32, 1, 0.01)
    assert row["error_after"] <= row["error_before"]
    assert row["output_sqnr_db"] > row["weight_sqnr_db"]
    assert (
        "gptq: the inputs of 1 of 1 layers saw fewer tokens than they have channels"
        in capsys.readouterr().err
    )


def test_damping_that_was_raised_is_reported() -> None:
    torch.manual_seed(0)
    data = torch.ones(40, 32) * torch.logspace(-4, 4, 32)  # one direction, eight decades

    model = octavo.quantize(
        nn.Sequential(nn.Linear(32, 16)),
        config({"num_bits": 4, "axis": 0}, {"method": "gptq", "perc_damp": 1e-12}),
        [data],
        quiet=True,
    )

    (row,) = rows_of(model)
    assert row["damping_asked_for"] == 1e-12
    assert row["damping"] > 1e-12


def test_what_it_does_not_solve_is_reported() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(8, 8, 3), nn.Flatten(1), nn.Linear(32, 32), nn.Linear(32, 16))
    two = [{"num_bits": 4, "block_sizes": {-1: 16}}, {"num_bits": (4, 3)}]
    rules = config({"num_bits": 8, "axis": 0}, ["mse", "gptq"])
    rules["quant_cfg"].append({"quantizer_name": "2.weight_quantizer", "cfg": two})

    octavo.quantize(model, rules, [torch.randn(40, 8, 6)], quiet=True)

    reasons = {row["weight"]: row.get("fallback") for row in rows_of(model)}
    known = "scales of max: gptq solves matrices with one quantizer, found"
    assert reasons == {
        "0.weight": f"{known} a weight with 3 dims",
        "2.weight": f"{known} 2 quantizers in turn",
        "3.weight": None,
    }


def test_a_layer_without_tokens_is_rounded_to_nearest() -> None:
    class Skips(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)  # type: ignore[no-any-return]

    model = Skips(nn.Linear(32, 32), nn.Linear(32, 16))
    octavo.quantize(model, config({"num_bits": 4, "axis": 0}, "gptq"), [correlated(40)], quiet=True)

    fallback = {row["weight"]: row.get("fallback") for row in rows_of(model)}["1.weight"]
    assert str(fallback).startswith("round-to-nearest: calibration data never reached")


def test_a_gram_matrix_that_overflows_names_the_weights() -> None:
    model = octavo.quantize(Siblings(), config({"num_bits": 4, "axis": 0}, "max"), quiet=True)

    with pytest.raises(
        CalibrationError, match=r"^left\.weight, right\.weight: a Gram matrix has entries that are"
    ):
        run_algorithms(model, [Gptq()], [correlated(40) * 1e20], quiet=True, groups=[["left", "right"]])


def test_layerwise() -> None:
    layerwise = {"method": "gptq", "layerwise": {"enable": True}}
    chosen = octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32)

    models = [
        octavo.quantize(tiny_llama(), {**chosen, "algorithm": algorithm}, token_batches(4), quiet=True)
        for algorithm in ("gptq", layerwise)
    ]

    first, second = (dict(model.named_parameters()) for model in models)
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed
    assert all(name.startswith("model.layers.1.") for name in changed)
    assert [row["weight"] for row in rows_of(models[1])] == [row["weight"] for row in rows_of(models[0])]


def _copy(model: nn.Sequential) -> nn.Sequential:
    copied = nn.Sequential(nn.Linear(32, 24, bias=False))
    copied.load_state_dict(model.state_dict())
    return copied
