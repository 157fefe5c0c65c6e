"""AWQ's clipping against a search with the tokens themselves."""

from __future__ import annotations

import pytest
import torch

from octavo.core.calibration.solvers.awq_clip import block_errors, clip_ratios, search_clip
from octavo.core.calibration.solvers.grid import amax_state
from octavo.core.calibration.solvers.input_product import InputProduct
from octavo.core.errors import UnsupportedError
from octavo.core.formats import PerBlock, PerChannel, PerTensor, QuantSpec, fake_quantize

BLOCKS = PerBlock(((-1, 16),))
INT4 = QuantSpec("int4", BLOCKS)
NVFP4 = QuantSpec("e2m1", BLOCKS, "e4m3", 2688.0, dynamic=True)


def layer() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(12, 40) ** 3, torch.randn(100, 40) * torch.exp(torch.randn(40))


def test_ratios_are_the_peers() -> None:
    assert clip_ratios() == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]


def test_blocks_are_clipped_as_their_own_outputs_say() -> None:
    weight, x = layer()

    found = search_clip(weight, InputProduct(x.T @ x), INT4)["amax"]

    largest = amax_state(weight, INT4)["amax"]
    for block in range(3):
        columns = slice(16 * block, min(16 * block + 16, 40))
        errors = torch.stack(
            [
                (x[:, columns] @ (fake_quantize(weight, [largest * r], INT4) - weight)[:, columns].T)
                .square()
                .sum(0)
                for r in clip_ratios()
            ]
        )
        expected = torch.tensor(clip_ratios())[errors.argmin(0)] * largest[:, block]
        torch.testing.assert_close(found[:, block], expected)
    assert (found < largest).any()


def test_block_errors_leave_out_products_of_blocks() -> None:
    change, x = torch.ones(1, 3), torch.tensor([[1.0, 2.0, 4.0]])

    assert block_errors(change, InputProduct(x.T @ x).blocks(2)).tolist() == [[9.0, 16.0]]


@pytest.mark.parametrize(("spec", "name"), [(NVFP4, "global_amax"), (QuantSpec("int4", PerTensor()), "amax")])
def test_a_range_of_the_whole_tensor_is_clipped_by_the_whole_error(spec: QuantSpec, name: str) -> None:
    weight, x = layer()

    found = search_clip(weight, InputProduct(x.T @ x), spec)

    largest = weight.abs().max()
    errors = [
        (x @ (fake_quantize(weight, [largest * r], spec) - weight).T).square().sum() for r in clip_ratios()
    ]
    assert list(found) == [name]
    torch.testing.assert_close(found[name], largest * clip_ratios()[int(torch.stack(errors).argmin())])


def test_scales_per_channel_are_refused() -> None:
    weight, x = layer()

    with pytest.raises(UnsupportedError, match=r"found int4 channel0; use a format with block_sizes"):
        search_clip(weight, InputProduct(x.T @ x), QuantSpec("int4", PerChannel(0)))


def test_ranges_are_rounded_to_the_dtype_asked_for() -> None:
    weight, x = layer()

    found = search_clip(weight, InputProduct(x.T @ x), INT4, amax_dtype=torch.bfloat16)["amax"]

    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())
