"""Block reconstruction: a tiny block learns, is left as it was, and never gets worse than its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.core.calibration.block_reconstruction import reconstruct
from octavo.core.calibration.reconstruction_options import ReconstructionOptions
from octavo.core.calibration.solvers.grid import amax_state, static
from octavo.core.calibration.solvers.learned_rounding import RoundedWeight
from octavo.core.errors import CalibrationError, ConfigError
from octavo.core.formats import PerBlock, QuantSpec, fake_quantize
from octavo.core.model.blocks import CapturedCall

G32 = PerBlock(((-1, 32),))
NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0)
WEIGHT_ONLY = [QuantSpec("int3", G32), NVFP4, QuantSpec("e2m1", G32, "e8m0", scale_rounding="even")]
OPTIONS = ReconstructionOptions(iterations=40, batch_size=2, reach=0.4)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, None]:
        return x + self.down(nn.functional.silu(self.up(x))) * scale, None


def block_and_calls(num_calls: int = 10) -> tuple[Mlp, list[CapturedCall], list[Tensor]]:
    torch.manual_seed(0)
    block, mix = Mlp().eval(), torch.randn(32, 32) / 4
    calls = [CapturedCall((torch.randn(2, 16, 32) @ mix,), {"scale": 3.0}) for _ in range(num_calls)]
    with torch.no_grad():
        targets = [block(*call.args, **call.kwargs)[0] for call in calls]
    return block, calls, targets


def starts_of(block: nn.Module, spec: QuantSpec) -> dict[str, RoundedWeight]:
    weights = {name: block.get_parameter(name).detach() for name in ("up.weight", "down.weight")}
    return {name: RoundedWeight(w, amax_state(w, spec), static(spec)) for name, w in weights.items()}


def on_its_grid(found: RoundedWeight) -> bool:
    state = [found.state[name] for name in found.spec.state]
    return torch.equal(fake_quantize(found.weight, state, found.spec), found.weight)


@pytest.mark.parametrize("spec", WEIGHT_ONLY, ids=str)
def test_the_error_falls_and_weights_lie_on_their_grids(spec: QuantSpec) -> None:
    block, calls, targets = block_and_calls()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}

    found = reconstruct(block, starts_of(block, spec), calls, targets, OPTIONS)

    assert found.report.held < 0.9 * found.report.start
    assert [step for step, _ in found.report.looks] == [20, 40]
    assert all(on_its_grid(weight) for weight in found.weights.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in block.parameters())


def test_inputs_stay_quantized_meanwhile() -> None:
    block, calls, targets = block_and_calls()
    quantizer = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
    config = {
        "quant_cfg": {"*weight_quantizer": quantizer, "*input_quantizer": quantizer},
        "algorithm": "max",
    }
    starts = starts_of(block, NVFP4)

    def forward_loop(model: nn.Module) -> None:
        for call in calls:
            model(*call.args, **call.kwargs)

    quantized = octavo.quantize(block, config, forward_loop, quiet=True)
    with torch.no_grad():
        rounded = quantized(*calls[-1].args, **calls[-1].kwargs)[0]
    found = reconstruct(quantized, starts, calls, targets, replace(OPTIONS, held=1))

    expected = nn.functional.mse_loss(rounded, targets[-1]).item()  # of weights and inputs rounded to nearest
    assert found.report.start == pytest.approx(expected, rel=1e-4)
    assert found.report.held < 0.95 * found.report.start
    assert quantized.up.weight_quantizer.enabled


def test_a_whole_model_learns_from_its_logits() -> None:
    block, calls, targets = block_and_calls()

    found = reconstruct(block, starts_of(block, WEIGHT_ONLY[0]), calls, targets, replace(OPTIONS, loss="kl"))

    with torch.no_grad():
        rows = [torch.func.functional_call(block, {n: w.weight for n, w in found.weights.items()}, c.args, c.kwargs)[0]
                for c in calls[-2:]]  # fmt: skip
    expected = [
        (t.softmax(-1) * (t.log_softmax(-1) - row.log_softmax(-1))).sum(-1).mean().item()
        for row, t in zip(rows, targets[-2:], strict=True)
    ]
    assert found.report.held == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert found.report.held < 0.9 * found.report.start


class Remembering(Mlp):
    """Fills the cache that it is given, as decoder blocks do."""

    def forward(self, x: Tensor, cache: list[Tensor]) -> tuple[Tensor, None]:  # type: ignore[override]
        cache.append(x)
        return super().forward(x, scale=float(len(cache)))


@torch.no_grad()
def test_every_run_of_a_block_gets_its_arguments_as_they_were_captured() -> None:
    _, calls, _ = block_and_calls()
    block, caches = Remembering().eval(), [[] for _ in calls]
    targets = [block(*call.args, cache=[])[0] for call in calls]
    given = [CapturedCall(call.args, {"cache": cache}) for call, cache in zip(calls, caches, strict=True)]

    found = reconstruct(
        block, starts_of(block, WEIGHT_ONLY[0]), given, targets, replace(OPTIONS, iterations=8)
    )

    assert found.report.iteration == 8
    assert found.report.held < found.report.start
    assert caches == [[] for _ in calls]


def test_the_same_seed_gives_the_same_weights() -> None:
    block, calls, targets = block_and_calls()
    starts = starts_of(block, WEIGHT_ONLY[0])

    first, second, other = (
        reconstruct(block, starts, calls, targets, replace(OPTIONS, iterations=8, seed=seed)).weights[
            "up.weight"
        ]
        for seed in (0, 0, 1)
    )

    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)


def test_the_start_is_kept_where_nothing_is_better() -> None:
    block, calls, targets = block_and_calls()
    starts = starts_of(block, WEIGHT_ONLY[0])

    found = reconstruct(block, starts, calls, targets, replace(OPTIONS, reach=60.0, iterations=6))

    assert found.report.iteration == 0
    assert found.report.held == found.report.start < min(loss for _, loss in found.report.looks)
    state = [starts["up.weight"].state["amax"]]
    rounded = fake_quantize(starts["up.weight"].weight, state, starts["up.weight"].spec)
    assert torch.equal(found.weights["up.weight"].weight, rounded)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"iterations": 0}, "iterations=0; expected an integer of at least 1"),
        ({"reach": 0}, "reach=0; expected a finite number above 0"),
        ({"range_reach": -1.0}, "range_reach=-1.0; expected a finite number of at least 0"),
        ({"loss": "mae"}, "loss='mae'; expected one of mse, kl"),
    ],
)
def test_wrong_options_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReconstructionOptions(**option)


@pytest.mark.parametrize(
    ("calls", "targets", "rename", "message"),
    [
        (10, 9, "up.weight", "10 calls and 9 targets; expected one each"),
        (2, 2, "up.weight", "2 captured calls, of which held=2 judge the result"),
        (10, 10, "gate.weight", "the module has no parameters gate.weight"),
        (10, 10, "down.weight", r"down.weight has shape \(32, 64\), its start \(64, 32\)"),
    ],
)
def test_what_does_not_fit_is_refused(calls: int, targets: int, rename: str, message: str) -> None:
    block, given, expected = block_and_calls()
    starts = {rename: starts_of(block, WEIGHT_ONLY[0])["up.weight"]}

    with pytest.raises(CalibrationError, match=message):
        reconstruct(block, starts, given[:calls], expected[:targets], OPTIONS)


def test_a_start_without_a_finite_loss_is_refused() -> None:
    block, calls, targets = block_and_calls()
    broken: Sequence[Tensor] = [*targets[:-1], torch.full_like(targets[-1], torch.nan)]

    with pytest.raises(CalibrationError, match="the loss of the start on the held calls is nan"):
        reconstruct(block, starts_of(block, WEIGHT_ONLY[0]), calls, broken, OPTIONS)
