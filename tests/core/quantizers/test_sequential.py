"""SequentialQuantizer: several formats in turn on one tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from octavo.core import ops
from octavo.core.formats import PerBlock, PerToken, QuantSpec, chain_key, parse_chain
from octavo.core.quantizers import SequentialQuantizer, TensorQuantizer

INT4 = QuantSpec("int4", PerBlock(((-1, 16),)))
FP8 = QuantSpec("e4m3")
TOKEN = QuantSpec("e4m3", PerToken(), dynamic=True)
X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


class Record:
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        self.seen.append(x)


def chain(*masks: bool) -> SequentialQuantizer:
    first, second = TensorQuantizer(INT4, X.shape), TensorQuantizer(FP8)
    first.set_state(amax=X.abs().reshape(4, 4, 16).amax(-1) * 0.7)
    second.set_state(amax=X.abs().max() * 0.5)
    for stage, mask in zip((first, second), masks, strict=False):
        stage.range_mask = mask
    return SequentialQuantizer([first, second])


def test_state_names_have_the_number_of_the_stage() -> None:
    names = ["0.amax", "0.calibrated", "1.amax", "1.calibrated"]

    assert list(chain().state_dict()) == names
    assert list(SequentialQuantizer([TensorQuantizer(TOKEN), TensorQuantizer(FP8)]).state_dict()) == names[2:]


def test_stages_run_in_turn() -> None:
    quantizer = chain()
    first, second = quantizer.stages()

    assert torch.equal(quantizer(X), second(first(X)))
    assert not torch.equal(quantizer(X), first(second(X)))


def test_the_chain_for_the_operators_computes_the_same() -> None:
    quantizer = chain()
    state, key = quantizer.active_state(), quantizer.active_key

    assert parse_chain(key) == (INT4, FP8)
    assert key == chain_key([INT4, FP8])
    assert [tensor.shape for tensor in state] == [(4, 4), ()]
    assert torch.equal(ops.fake_quantize(X, state, key), quantizer(X))


@pytest.mark.parametrize(("off", "left"), [((0,), [FP8]), ((1,), [INT4]), ((0, 1), [])])
def test_stages_that_are_off_are_left_out(off: tuple[int, ...], left: list[QuantSpec]) -> None:
    quantizer = chain()
    for index in off:
        quantizer[index].enabled = False

    assert quantizer.active_key == chain_key(left)
    assert len(quantizer.active_state()) == len(left)
    expected = ops.fake_quantize(X, quantizer.active_state(), chain_key(left)) if left else X
    assert torch.equal(quantizer(X), expected)


def test_collectors_of_all_stages_see_the_tensor_unrounded() -> None:
    quantizer, record = chain(), Record()
    for stage in quantizer.stages():
        stage.collector = record

    assert quantizer(X) is X
    assert quantizer.observe(X) is X
    assert [seen is X for seen in record.seen] == [True] * 4
    assert quantizer.active_key == chain_key([])


def gradient(quantizer: SequentialQuantizer, fused: bool) -> Tensor:
    weight = X.clone().requires_grad_()
    x = torch.ones(3, 64)
    if fused:
        side = (quantizer.active_state(), quantizer.active_key, True, quantizer.range_mask)
        state, key, x_mask, mask = side
        output = ops.fake_quantized_linear(x, weight, None, [], chain_key([]), state, key, x_mask, mask)
    else:
        output = linear(x, quantizer(weight))
    output.sum().backward()
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize(
    "masks",
    [(True, True), (False, False), (True, False), (False, True)],
)
def test_a_layer_and_the_module_agree_on_gradients(masks: tuple[bool, bool]) -> None:
    assert torch.equal(gradient(chain(*masks), fused=True), gradient(chain(*masks), fused=False))


def test_range_mask_is_on_when_every_stage_has_it() -> None:
    assert (chain(True, True).range_mask, chain(False, False).range_mask) == (True, False)


def test_indexing_gives_the_stage() -> None:
    quantizer = chain()

    assert quantizer[1] is quantizer.stages()[1]
    assert len(quantizer) == 2


def test_slicing_gives_a_chain() -> None:
    assert chain()[1:].active_key == FP8.key
