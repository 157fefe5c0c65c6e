"""What a quantizer does to the tensor that passes: rounds it, or leaves it as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.core import formats, ops
from octavo.core.formats import PerBlock, PerToken, QuantSpec, chain_key
from octavo.core.quantizers import TensorQuantizer

INT8 = QuantSpec("int8")
MXFP4 = QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", dynamic=True)
X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


class Record:
    """A collector that keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[TensorQuantizer, Tensor]] = []

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        self.seen.append((quantizer, x))


def int8(range_mask: bool = True) -> TensorQuantizer:
    quantizer = TensorQuantizer(INT8, range_mask=range_mask)
    quantizer.set_state(amax=torch.tensor(1.0))
    return quantizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_rounded_and_their_dtype_stays(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    result = int8()(x)

    assert result.dtype == dtype
    assert torch.equal(result, formats.fake_quantize(x, [torch.tensor(1.0)], INT8))
    assert not torch.equal(result, x)


def test_dynamic_formats_need_no_state() -> None:
    assert torch.equal(TensorQuantizer(MXFP4)(X), formats.fake_quantize(X, [], MXFP4))


@pytest.mark.parametrize("range_mask", [True, False])
def test_gradients_stop_where_values_saturate_if_asked_to(range_mask: bool) -> None:
    x = X.clone().requires_grad_()
    int8(range_mask)(x).sum().backward()

    expected = (X.abs() <= 1.0) if range_mask else torch.ones_like(X)
    assert torch.equal(x.grad, expected.float())


def test_off_passes_the_very_tensor_and_keeps_the_state() -> None:
    quantizer = int8()
    quantizer.enabled = False

    assert quantizer(X) is X
    assert (quantizer.is_active, quantizer.active_key, quantizer.active_state()) == (False, chain_key([]), [])
    assert quantizer.amax.item() == 1.0
    quantizer.enabled = True
    assert quantizer.active_key == INT8.key
    assert quantizer.active_state() == [quantizer.amax]


def test_a_quantizer_without_format_is_off() -> None:
    quantizer = TensorQuantizer()

    assert not quantizer.enabled
    assert quantizer(X) is X


@pytest.mark.parametrize("spec", [INT8, MXFP4, QuantSpec("e4m3", PerToken(), dynamic=True)], ids=str)
@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (4, 0)], ids=str)
def test_empty_tensors_stay_empty(spec: QuantSpec, shape: tuple[int, ...]) -> None:
    assert TensorQuantizer(spec)(torch.zeros(shape)).shape == shape


def test_a_collector_sees_the_very_tensor_and_nothing_is_rounded_meanwhile() -> None:
    quantizer, record = int8(), Record()
    quantizer.collector = record

    assert quantizer(X) is X
    assert quantizer.active_key == chain_key([])
    ((source, seen),) = record.seen
    assert (source is quantizer, seen is X) == (True, True)
    quantizer.collector = None
    assert torch.equal(quantizer(X), ops.fake_quantize(X, [quantizer.amax], INT8.key))
    assert len(record.seen) == 1


def test_a_collector_sees_what_passes_a_quantizer_that_is_off() -> None:
    quantizer, record = int8(), Record()
    quantizer.enabled, quantizer.collector = False, record
    quantizer(X)

    assert len(record.seen) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pre_quant_scale_comes_first_and_collectors_see_its_product(dtype: torch.dtype) -> None:
    quantizer, record, x = int8(), Record(), X.to(dtype)
    scale = torch.linspace(0.5, 2.0, 64)
    quantizer.pre_quant_scale = scale
    product = (x * scale).to(dtype)

    assert torch.equal(quantizer(x), ops.fake_quantize(product, [quantizer.amax], INT8.key))
    assert quantizer(x).dtype == dtype
    quantizer.collector = record
    assert torch.equal(quantizer(x), product)
    assert torch.equal(record.seen[0][1], product)


def test_forward_changes_no_state() -> None:
    quantizer = int8()
    before = {name: (id(t), t._version) for name, t in quantizer.named_buffers()}
    quantizer(X * 100)

    assert {name: (id(t), t._version) for name, t in quantizer.named_buffers()} == before
    quantizer.train(not quantizer.training)
    assert torch.equal(quantizer(X), int8()(X))
