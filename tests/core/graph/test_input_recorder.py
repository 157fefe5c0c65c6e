"""Layers are grouped by the very tensor that they read, seen while the model runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from octavo.core.graph import InputRecorder


def layers(*names: str) -> dict[str, nn.Module]:
    return {name: nn.Linear(4, 4) for name in names}


def seen(
    watched: dict[str, nn.Module], run: Callable[[dict[str, nn.Module]], object]
) -> list[tuple[str, ...]]:
    with InputRecorder(watched) as recorder:
        run(watched)
    return recorder.groups()


def test_the_same_tensor_makes_a_group_and_equal_values_do_not() -> None:
    x = torch.ones(2, 4)

    def run(layer: dict[str, nn.Module]) -> None:
        for name, tensor in (("b", x), ("a", x), ("c", x.clone()), ("d", x.view(2, 4)), ("e", x)):
            layer[name](tensor)

    assert seen(layers(*"abcde"), run) == [("b", "a", "e")]


def test_groups_come_in_the_order_they_were_seen() -> None:
    x, y = torch.ones(2, 4), torch.ones(2, 4)

    def run(layer: dict[str, nn.Module]) -> None:
        for name, tensor in (("d", y), ("a", x), ("c", y), ("b", x)):
            layer[name](tensor)

    assert seen(layers(*"abcd"), run) == [("d", "c"), ("a", "b")]


def test_inputs_by_keyword() -> None:
    x = torch.ones(2, 4)

    class Masked(nn.Linear):
        def forward(self, input: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(input) * scale

    watched: dict[str, nn.Module] = {"a": Masked(4, 4), "b": Masked(4, 4), "c": Masked(4, 4)}

    def run(layer: dict[str, nn.Module]) -> None:
        layer["a"](x)
        layer["b"](input=x)
        layer["c"](scale=2.0, input=x)

    assert seen(watched, run) == [("a", "b", "c")]


def test_calls_without_a_tensor() -> None:
    class Constant(nn.Module):
        def forward(self, size: int = 1) -> Tensor:
            return torch.zeros(size)

    watched: dict[str, nn.Module] = {"a": Constant(), "b": Constant()}
    with InputRecorder(watched) as recorder:
        watched["a"](3)
        watched["b"]()

    assert (recorder.groups(), recorder.called) == ([], {"a", "b"})


def test_only_the_first_call_of_a_layer_counts() -> None:
    x, y = torch.ones(2, 4), torch.ones(2, 4)

    def run(layer: dict[str, nn.Module]) -> None:
        for name, tensor in (("a", x), ("a", x), ("b", y), ("a", y), ("b", x)):
            layer[name](tensor)

    assert seen(layers("a", "b"), run) == []


def test_an_id_that_is_used_again_is_another_tensor() -> None:
    watched, ids = layers(*map(str, range(200))), []
    with InputRecorder(watched) as recorder:
        for layer in watched.values():
            x = torch.ones(2, 4)
            ids.append(id(x))
            layer(x)
            del x

    assert len(set(ids)) < len(ids)  # each tensor dies before the next one is made, so that ids come again
    assert recorder.groups() == []


def test_no_activation_is_kept_alive() -> None:
    watched = layers("a")
    with InputRecorder(watched):
        x = torch.ones(2, 4)
        reference = weakref.ref(x)
        watched["a"](x)
        del x
        gc.collect()

        assert reference() is None


def test_nothing_is_recorded_outside_the_context() -> None:
    watched, x = layers("a", "b"), torch.ones(2, 4)
    with InputRecorder(watched) as recorder:
        watched["a"](x)
    watched["b"](x)

    assert (recorder.groups(), recorder.called) == ([], {"a"})
    assert [len(layer._forward_pre_hooks) for layer in watched.values()] == [0, 0]


def test_hooks_are_gone_after_an_exception() -> None:
    watched = layers("a")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), InputRecorder(watched):
        watched["a"](torch.ones(2, 3))

    assert not watched["a"]._forward_pre_hooks
