"""XᵀX as matrix and as tokens: the same errors, those of the outputs themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.core.calibration.solvers.input_product import InputProduct

FACTOR = torch.tensor([0.5, 2.0, 1.0, 4.0, 0.25])


def tokens() -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["matrix", "tokens"])
def product(request: pytest.FixtureRequest) -> InputProduct:
    x = tokens()
    return InputProduct(x.T @ x) if request.param == "matrix" else InputProduct(None, x.split(3))


def test_errors_are_those_of_outputs(product: InputProduct) -> None:
    change = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))

    expected = (tokens().double() @ change.double().T).square().sum(0).float()

    torch.testing.assert_close(product.errors(change), expected)


def test_a_factor_is_one_on_the_input(product: InputProduct) -> None:
    change, x = torch.ones(1, 5), tokens()
    once, twice = product.scaled(FACTOR), product.scaled(FACTOR).scaled(FACTOR)

    torch.testing.assert_close(once.errors(change), (x * FACTOR).sum(1).square().sum()[None])
    torch.testing.assert_close(twice.errors(change), (x * FACTOR**2).sum(1).square().sum()[None])
    torch.testing.assert_close(product.errors(change), x.sum(1).square().sum()[None])


def test_blocks_are_those_on_the_diagonal(product: InputProduct) -> None:
    x = tokens() * FACTOR
    gram = torch.nn.functional.pad(x.T @ x, (0, 1, 0, 1))

    found = product.scaled(FACTOR).blocks(3)

    torch.testing.assert_close(found, torch.stack([gram[:3, :3], gram[3:, 3:]]))
    torch.testing.assert_close(product.blocks(5)[0], tokens().T @ tokens())
