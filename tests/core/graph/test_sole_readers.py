"""Who reads what a norm makes, and whether nothing else does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from octavo.core.graph.sole_readers import SoleReaders


class Block(nn.Module):
    """A norm, two layers, and a body that uses them."""

    def __init__(self, body: Callable[[Block, Tensor], object]) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.router = nn.Linear(8, 2)
        self.body = body

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


def watched(body: Callable[[Block, Tensor], object]) -> SoleReaders:
    model = Block(body)
    probe = SoleReaders({"norm": model.norm}, {"a": model.a, "b": model.b})
    return probe.watch(model, {"x": torch.ones(2, 8)})


def plain(m: Block, x: Tensor) -> object:
    y = m.norm(x)
    assert y.shape == (2, 8)  # looking at it is no use of its values
    assert y.dtype == torch.float32
    return x + m.a(y) + m.b(y)


def test_layers_that_alone_read_a_norm() -> None:
    probe = watched(plain)

    assert probe.readers_of("norm") == ("a", "b")
    assert probe.used_elsewhere == set()
    assert probe.called == {"norm", "a", "b"}


def residual(m: Block, x: Tensor) -> object:
    y = m.norm(x)
    return y + m.a(y)


def routed(m: Block, x: Tensor) -> object:
    y = m.norm(x)
    return m.a(y) * m.router(y)[:, :1]


def returned(m: Block, x: Tensor) -> object:
    y = m.norm(x)
    return {"hidden": (y, m.a(y))}


def viewed(m: Block, x: Tensor) -> object:
    y = m.norm(x)
    return m.a(y) + m.b(y.view(-1, 8))


def norm_twice(m: Block, x: Tensor) -> object:
    return m.a(m.norm(m.norm(x)))


def reader_twice(m: Block, x: Tensor) -> object:
    return m.a(m.a(m.norm(x)))


@pytest.mark.parametrize("body", [residual, routed, returned, viewed, norm_twice, reader_twice])
def test_every_other_use_is_seen(body: Callable[[Block, Tensor], object]) -> None:
    assert watched(body).used_elsewhere == {"norm"}


def test_what_no_norm_made_has_no_maker() -> None:
    probe = watched(lambda m, x: m.b(m.a(m.norm(x)).relu()))

    assert probe.readers_of("norm") == ("a",)
    assert probe.used_elsewhere == set()
