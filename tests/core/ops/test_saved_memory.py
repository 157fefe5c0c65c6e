"""What backward keeps: inputs, parameters and scales, never a quantized copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.ops_cases import INT8, MXFP4, normal
from octavo.core import ops
from octavo.core.modules import tensor_quantizers

PRESETS = ["FP8_DEFAULT_CFG", "INT8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG", "MXFP4_DEFAULT_CFG"]
WIDTH, ROWS = 64, 512


class SharedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)


def saved_bytes(run: Callable[[], Any]) -> int:
    """Return the bytes of the distinct storages that a forward pass keeps for backward."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    del kept  # alive until here, so that no storage was freed and counted twice
    return sum(storages.values())


def pair(preset: str) -> tuple[nn.Module, nn.Module, int]:
    """Return a plain and a quantized model, and the bytes of the latter's scales."""
    quantized = octavo.quantize(SharedInput(), preset, [normal(8, WIDTH)], quiet=True)
    scales = sum(t.nbytes for _, q in tensor_quantizers(quantized) for t in q.state_tensors())
    return SharedInput(), quantized, scales


@pytest.mark.parametrize("preset", PRESETS)
def test_three_layers_that_share_an_input_keep_it_once(preset: str) -> None:
    plain, quantized, scales = pair(preset)
    x = normal(ROWS, WIDTH).requires_grad_()
    expected = ROWS * WIDTH * 4 + 3 * WIDTH * WIDTH * 4

    assert saved_bytes(lambda: plain(x)) == expected
    assert saved_bytes(lambda: quantized(x)) == expected + scales


@pytest.mark.parametrize("preset", PRESETS)
def test_one_layer_in_the_middle_of_a_network(preset: str) -> None:
    plain, quantized, scales = pair(preset)
    x = normal(ROWS, WIDTH).requires_grad_()

    expected = saved_bytes(lambda: plain.k(x * 1.0))
    assert saved_bytes(lambda: quantized.k(x * 1.0)) == expected + scales // 3


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_kept_where_nothing_is_trained(preset: str) -> None:
    _, quantized, _ = pair(preset)
    x = normal(ROWS, WIDTH)
    with torch.no_grad():
        assert saved_bytes(lambda: quantized(x)) == 0
    assert saved_bytes(lambda: quantized.requires_grad_(False)(x)) == 0


@pytest.mark.parametrize("preset", ["FP8_DEFAULT_CFG", "MXFP4_DEFAULT_CFG"])
def test_frozen_weights_keep_no_activations(preset: str) -> None:
    # As under LoRA, where plain layers keep their weights only.
    plain, quantized, scales = pair(preset)
    for _, quantizer in tensor_quantizers(quantized):
        quantizer.range_mask = False
    x = normal(ROWS, WIDTH).requires_grad_()
    expected = saved_bytes(lambda: plain.requires_grad_(False)(x))

    assert expected == 3 * WIDTH * WIDTH * 4
    assert saved_bytes(lambda: quantized.requires_grad_(False)(x)) <= expected + scales


@pytest.mark.parametrize("preset", PRESETS)
def test_under_autocast_the_fp32_tensors_themselves_are_kept(preset: str) -> None:
    _, quantized, scales = pair(preset)
    x = normal(ROWS, WIDTH).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        kept = saved_bytes(lambda: quantized(x))

    assert kept == ROWS * WIDTH * 4 + 3 * WIDTH * WIDTH * 4 + scales


def test_fake_quantize_keeps_what_its_mask_needs() -> None:
    x, amax = normal(ROWS, WIDTH).requires_grad_(), torch.tensor(1.0)

    assert saved_bytes(lambda: ops.fake_quantize(x, [amax], INT8.key)) == x.nbytes + amax.nbytes
    assert saved_bytes(lambda: ops.fake_quantize(x, [amax], INT8.key, range_mask=False)) == 0
    assert saved_bytes(lambda: ops.fake_quantize(x, [], MXFP4.key)) == 0
