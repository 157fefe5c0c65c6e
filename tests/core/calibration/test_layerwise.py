"""Layerwise calibration: what each block reads, and that it is calibrated with that."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.tiny import tiny_llama
from octavo.core.calibration.activation_store import ActivationStore
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.run import run_algorithms
from octavo.core.calibration.statistics import Needs

LAYERWISE = {"enable": True}
TOKENS = [torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(i)) for i in range(3)]


class Look(Algorithm):
    """Remember what the algorithm is given."""

    seen: ClassVar[dict[str, Any]] = {}

    def needs(self) -> Needs:
        return Needs(gram=True)

    def run(self, calibration: Calibration) -> None:
        for problem in calibration.problems():
            assert problem.name not in self.seen
            self.seen[problem.name] = (problem.gram(), calibration.block)


@pytest.fixture
def seen() -> dict[str, Any]:
    Look.seen.clear()
    return Look.seen


def inputs_of(model: nn.Module, layer: str) -> Tensor:
    """Return what a layer of the model reads when it runs the tokens as it is now."""
    found = []
    with model.get_submodule(layer).register_forward_pre_hook(lambda _, args: found.append(args[0])):
        for tokens in TOKENS:
            model(input_ids=tokens)
    return torch.cat(found).flatten(0, 1)


@torch.no_grad()
@pytest.mark.parametrize("from_quantized", [True, False])
def test_inputs_come_from_quantized_or_original_blocks(from_quantized: bool, seen: dict[str, Any]) -> None:
    model = octavo.quantize(tiny_llama(), octavo.INT8_DEFAULT_CFG, TOKENS, quiet=True)
    options = {**LAYERWISE, "get_qdq_activations_from_prev_layer": from_quantized}

    run_algorithms(model, [Look(layerwise=options)], TOKENS, quiet=True)  # type: ignore[arg-type]

    expected = inputs_of(model if from_quantized else tiny_llama(), "model.layers.1.self_attn.q_proj")
    gram, block = seen["model.layers.1.self_attn.q_proj.weight"]
    torch.testing.assert_close(gram, expected.T @ expected, rtol=1e-4, atol=1e-4)
    assert (block.name, len(block.inputs), len(block.targets)) == ("model.layers.1", len(TOKENS), len(TOKENS))
    if not from_quantized:
        whole = tiny_llama()
        outputs: list[Tensor] = []
        with whole.get_submodule("model.layers.1").register_forward_hook(
            lambda _, __, out: outputs.append(out if isinstance(out, Tensor) else out[0])
        ):
            for tokens in TOKENS:
                whole(input_ids=tokens)
        torch.testing.assert_close(torch.cat(list(block.targets)), torch.cat(outputs))


def test_blocks_that_do_not_follow_each_other_are_refused() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32)) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[0](x) + self.blocks[1](x + 1)

    data = [torch.randn(4, 32)]
    config = {**octavo.INT8_DEFAULT_CFG, "algorithm": {"method": "max", "layerwise": LAYERWISE}}

    with pytest.raises(
        octavo.UnsupportedError, match=r"^block blocks\.1 reads another tensor .* this model whole"
    ):
        octavo.quantize(Skips(), config, data, quiet=True)


def test_a_model_without_blocks_is_refused() -> None:
    config = {**octavo.INT8_DEFAULT_CFG, "algorithm": {"method": "max", "layerwise": LAYERWISE}}

    with pytest.raises(octavo.UnsupportedError, match=r"needs to know the blocks of Sequential: .*\(none\)"):
        octavo.quantize(nn.Sequential(nn.Linear(32, 32)), config, [torch.randn(4, 32)], quiet=True)


def test_layerwise_needs_data() -> None:
    config = {**octavo.INT8_WEIGHT_ONLY_CFG, "algorithm": {"method": "max", "layerwise": LAYERWISE}}

    with pytest.raises(octavo.CalibrationError, match="layerwise calibration needs data"):
        octavo.quantize(tiny_llama(), config, quiet=True)


@pytest.mark.parametrize("limit", [0, 100, 10**9])
def test_activations_beyond_the_limit_go_to_disk(limit: int) -> None:
    store = ActivationStore(limit)
    tensors = [torch.randn(4, 5) for _ in range(3)]

    for tensor in tensors:
        store.append(tensor)

    assert store.bytes_in_memory <= limit
    assert len(store) == 3
    assert all(torch.equal(found, tensor) for found, tensor in zip(store, tensors, strict=True))
