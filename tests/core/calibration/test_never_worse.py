"""What our own algorithms choose is never worse on held tokens than rounding to nearest, computed here in float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import octavo
from helpers.solver_problems import FORMATS
from helpers.tiny import tiny_llama
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.compensate import Compensate
from octavo.core.calibration.compensated_weights import round_group
from octavo.core.calibration.group_statistics import GroupStatistics
from octavo.core.calibration.originals import Originals
from octavo.core.calibration.solvers.smoothing import search_smoothing
from octavo.core.config.spec_attributes import spec_attributes
from octavo.core.formats import QuantSpec
from oracles import number_formats as oracle

WIDTH = 32
INPUTS = {
    "int8": QuantSpec("int8"),
    "fp8": QuantSpec("e4m3"),
    "nvfp4": QuantSpec("e2m1", FORMATS["nvfp4"].granularity, "e4m3", 2688.0, dynamic=True),
}
# The oracle knows one rounding of powers of two.
SMOOTHED = {**FORMATS, "mxfp4": QuantSpec("e2m1", FORMATS["mxfp4"].granularity, "e8m0")}
SEEDS, COUNTS = st.integers(0, 1000), st.integers(1, 80)
# Whether one channel is loud by this factor, and others are dead.
LOUD, DEAD = st.sampled_from([1.0, 30.0, 1e4]), st.booleans()
SMALL = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def inputs(count: int, seed: int, loud: float, dead: bool) -> Tensor:
    """Return correlated tokens [count, WIDTH] with outliers."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator)
    x = torch.randn(count, WIDTH, generator=generator) @ mixing
    x[:, seed % WIDTH] *= loud
    if dead:
        x[:, [1, 2, 17]] = 0
    return x


def rules(weights: dict[str, Any], algorithm: Any, of_inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    chosen = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": weights},
    ]
    if of_inputs is not None:
        chosen.append({"quantizer_name": "*input_quantizer", "cfg": of_inputs})
    chosen += [{"quantizer_name": name, "enable": False} for name in ("*lm_head*", "*embed_tokens*")]
    return {"quant_cfg": chosen, "algorithm": algorithm}


def attributes(name: str) -> dict[str, Any]:
    found = spec_attributes(FORMATS[name])
    if name == "mxfp4":
        found["block_sizes"]["type"] = "dynamic"
    return found


def is_no_more(found: float, limit: float) -> bool:
    """Whether an error is no more than another, but for what fp32 sums leave open."""
    return found <= limit * (1 + 1e-4) + 1e-12


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), COUNTS, SEEDS, LOUD, DEAD, st.sampled_from([2, 16]), st.booleans())
def test_compensate(
    name: str, count: int, seed: int, loud: float, dead: bool, stride: int, knows_original: bool
) -> None:
    torch.manual_seed(seed)
    plain = nn.ModuleList([nn.Linear(WIDTH, 16, bias=False), nn.Linear(WIDTH, 24, bias=False)])
    x = inputs(count, seed, loud, dead)
    original = x + 0.1 * torch.randn_like(x) if knows_original else None
    model: Any = octavo.quantize(copy.deepcopy(plain), rules(attributes(name), "max"), quiet=True)
    nearest = [layer.weight_quantizer(layer.weight).detach().double() for layer in model]
    calibration = Calibration(model, [["0", "1"]], {}, Originals(), quiet=True)
    statistics = GroupStatistics(stride)
    statistics.add(x, original)

    with torch.no_grad():
        round_group(calibration, list(calibration.problems()), statistics, Compensate(sweeps=1))

    held = slice(stride - 1, None, stride)
    read, wanted = x[held].double(), (x if original is None else original)[held].double()
    for layer, exact, limit, row in zip(model, plain, nearest, calibration.rows, strict=True):
        target = wanted @ exact.weight.detach().double().T
        stored = layer.weight_quantizer(layer.weight).detach().double()
        errors = [float((read @ w.T - target).square().sum()) for w in (stored, limit)]
        assert is_no_more(*errors)
        if "fallback" in row and "tokens" in row:
            assert torch.equal(stored, limit)
            assert row["chosen"] == "round to nearest"


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(sorted(INPUTS)),
    COUNTS,
    SEEDS,
    LOUD,
    DEAD,
    st.booleans(),
)
def test_a_search_of_smoothing(
    name: str, of_inputs: str, count: int, seed: int, loud: float, dead: bool, by_rms: bool
) -> None:
    torch.manual_seed(seed)
    weights, x = [torch.randn(16, WIDTH), torch.randn(24, WIDTH) ** 3], inputs(count, seed, loud, dead)
    amax, rms = x.abs().amax(0), x.square().mean(0).sqrt()
    held, spec, input_spec = x[: count // 2 + 1], SMOOTHED[name], INPUTS[of_inputs]

    found = search_smoothing(weights, amax, held, spec, input_spec, rms if by_rms else None)

    for weight in weights:
        chosen, plain = (
            smoothed_error(weight, held, scale, amax, spec, input_spec)
            for scale in (found.pre_quant_scale, torch.ones(WIDTH))
        )
        assert is_no_more(chosen, plain)


def smoothed_error(
    weight: Tensor, x: Tensor, scale: Tensor, amax: Tensor, spec: QuantSpec, input_spec: QuantSpec
) -> float:
    """Return the squared error of an output whose weight and input are rounded by the oracle, float64."""
    columns = rounded(weight * (1 / scale), spec, None)
    read = rounded(x * scale, input_spec, (amax * scale).max())
    target = x.double() @ weight.double().T
    return float((read @ columns.T - target).square().sum())


def rounded(values: Tensor, spec: QuantSpec, largest: Tensor | None) -> Tensor:
    """Return values rounded under their own maxima, or where the format is calibrated under `largest`."""
    form = spec.to_json()
    own = oracle.block_amax(values.numpy(), form["granularity"]) if largest is None else largest.numpy()
    second = None if spec.global_max is None else (values.abs().max() if largest is None else largest).numpy()
    return torch.from_numpy(oracle.fake_quantize(values.numpy(), form, own, second)).double()


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(["int3", "nvfp4", "mxfp4", "int4"]),
    st.sampled_from([None, {"num_bits": 8}]),
    st.integers(0, 1000),
    st.sampled_from([0.1, 2.0, 80.0]),
    st.sampled_from([0.0, 0.5]),
    LOUD,
    st.sampled_from([1, 2, 7, 12]),  # tokens of a sequence, not as many as sequences
)
def test_learned_rounding(
    name: str,
    of_inputs: dict[str, Any] | None,
    seed: int,
    reach: float,
    range_reach: float,
    loud: float,
    length: int,
) -> None:
    plain = tiny_llama(**SMALL, num_hidden_layers=1)
    with torch.no_grad():
        plain.get_parameter("model.embed_tokens.weight")[:, seed % WIDTH] *= loud
    data = torch.randint(1, 64, (4, length), generator=torch.Generator().manual_seed(seed))
    options = {
        "iterations": 2,
        "batch_size": 1,
        "held_batches": 2,
        "reach": reach,
        "range_reach": range_reach,
    }
    learn = {"method": "learned_rounding", "logits": False, "seed": seed, **options}
    nearest, learned = (
        octavo.quantize(
            copy.deepcopy(plain), rules(attributes(name), algorithm, of_inputs), [data], quiet=True
        )
        for algorithm in ("max", ["max", learn])
    )

    def error(model: nn.Module) -> float:
        found, exact = (block_output(m, data[-2:]) for m in (model, plain))
        return float((found - exact).square().mean())

    chosen, limit = error(learned), error(nearest)
    assert is_no_more(chosen, limit)
    rows = octavo.history(learned)[-1].state["report"]["weights"]
    kept = [row for row in rows if row["algorithm"] == "learned_rounding" and row.get("fallback")]
    if kept:
        assert chosen == limit


@torch.no_grad()
def block_output(model: nn.Module, ids: Tensor) -> Tensor:
    seen: list[Tensor] = []
    block = model.get_submodule("model.layers.0")
    handle = block.register_forward_hook(lambda _, __, output: seen.append(output))
    model(ids)
    handle.remove()
    return seen[0].double()
