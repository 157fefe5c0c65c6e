"""Low-rank corrections: the peer's, and the one that counts the input."""

from __future__ import annotations

import pytest
import torch

from octavo.core.calibration.solvers.svdquant import correction, low_rank


@pytest.mark.parametrize("shape", [(10, 16), (16, 10), (12, 12)], ids=str)
def test_low_rank_leaves_the_smaller_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    values = torch.linalg.svdvals(weight)

    found = low_rank(weight, 4)

    left = torch.linalg.svdvals(weight - found.up @ found.down)
    torch.testing.assert_close(left[: len(values) - 4], values[4:], rtol=1e-4, atol=1e-5)
    assert (found.down.shape, found.up.shape) == ((4, shape[1]), (shape[0], 4))
    torch.testing.assert_close(found.up.norm(dim=0), values[:4], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.down @ found.down.T, torch.eye(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)], ids=str)
def test_a_weight_of_less_rank_is_taken_out_whole(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape[0], 2) @ torch.randn(2, shape[1])

    for found, expected in (
        (low_rank(weight, 4), weight),
        (low_rank(torch.zeros(shape), 4), torch.zeros(shape)),
    ):
        torch.testing.assert_close(found.up @ found.down, expected, rtol=1e-5, atol=1e-6)
        assert found.up.abs().max() <= 2 * weight.norm()


def test_a_rank_beyond_the_weights_is_filled_with_zeros_in_its_dtype() -> None:
    weight = torch.randn(3, 8).bfloat16()

    found = low_rank(weight, 5)

    assert (found.down.shape, found.up.shape, found.up.dtype) == ((5, 8), (3, 5), torch.bfloat16)
    assert not found.up[:, 3:].any()
    assert not found.down[3:].any()
    torch.testing.assert_close(found.up @ found.down, weight, rtol=0.05, atol=0.05)


def test_correction_leaves_the_least_output_error_of_its_rank() -> None:
    torch.manual_seed(0)
    error, x = torch.randn(10, 16), torch.randn(200, 16) * torch.exp(2 * torch.randn(16))

    found = correction(error, x.T @ x, 4)

    # No matrix of rank 4 is nearer to the output error than its own four largest singular vectors.
    least = torch.linalg.svdvals(x @ error.T)[4:].square().sum()
    torch.testing.assert_close(
        (x @ (error - found.up @ found.down).T).square().sum(), least, rtol=1e-3, atol=0
    )
    plain = low_rank(error, 4)
    assert least < 0.9 * (x @ (error - plain.up @ plain.down).T).square().sum()


def test_correction_takes_channels_that_are_never_active() -> None:
    error, x = torch.randn(4, 6), torch.randn(50, 6)
    x[:, 2] = 0

    found = correction(error, x.T @ x, 4)

    torch.testing.assert_close(x @ (found.up @ found.down).T, x @ error.T, rtol=1e-3, atol=1e-3)
