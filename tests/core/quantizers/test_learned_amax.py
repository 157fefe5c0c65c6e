"""Scales that training changes: where they start, their gradients, and what is left when they are fixed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from helpers.ops_cases import E4M3, INT4_BLOCK, INT8, MXFP4, NVFP4_STATIC, normal, state_of
from octavo.core.errors import ConfigError
from octavo.core.formats import QuantSpec
from octavo.core.quantizers import TensorQuantizer
from oracles import learned_scales


def calibrated(spec: QuantSpec, x: Tensor, factor: float = 0.6) -> TensorQuantizer:
    quantizer = TensorQuantizer(spec, x.shape)
    quantizer.set_state(**dict(zip(spec.state, state_of(x, spec, factor=factor), strict=True)))
    return quantizer


@pytest.mark.parametrize("spec", [INT8, E4M3, INT4_BLOCK, NVFP4_STATIC], ids=str)
def test_learning_starts_from_the_calibrated_scales_bit_for_bit(spec: QuantSpec) -> None:
    x = normal(64, 64)
    quantizer = calibrated(spec, x)
    before = quantizer(x)

    quantizer.learn_amax("lsq")

    assert torch.equal(quantizer(x), before)
    assert [name for name, _ in quantizer.named_parameters()] == ["amax_shift"]
    assert quantizer.amax_shift is not None
    assert quantizer.amax_shift.dim() >= 1, "sharding needs a dim"


def test_the_shift_gets_the_gradient_of_amax_in_octaves_times_the_factor_of_the_paper() -> None:
    x, grad = normal(64, 64), normal(64, 64, seed=1)
    quantizer = calibrated(INT4_BLOCK, x)
    quantizer.learn_amax("lsq")

    quantizer(x).backward(grad)

    amax = quantizer.amax.numpy()
    of_amax = learned_scales.state_gradients(grad.numpy(), x.numpy(), INT4_BLOCK.to_json(), amax)["amax"]
    wanted = of_amax * amax * math.log(2) / math.sqrt(16 * 7)
    assert quantizer.amax_shift is not None
    torch.testing.assert_close(
        quantizer.amax_shift.grad, torch.from_numpy(wanted).float(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pact_gives_the_range_the_gradient_of_clipped_values_alone(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.5, 2.0, -3.0, 0.9]], dtype=dtype, requires_grad=True)
    quantizer = TensorQuantizer(INT8, (0, 4))
    quantizer.set_state(amax=torch.tensor(1.001))  # rounds up in bf16, past what int8 holds
    quantizer.learn_amax("pact")

    quantizer(x).backward(torch.tensor([[1.0, 10.0, 100.0, 1000.0]], dtype=dtype))

    assert x.grad is not None
    assert x.grad.tolist() == [[1, 0, 0, 1000]]
    of_amax = 10 - 100 * 128 / 127
    wanted = of_amax * 1.001 * math.log(2) / math.sqrt(4 * 127)
    assert quantizer.amax_shift is not None
    assert quantizer.amax_shift.grad is not None
    assert quantizer.amax_shift.grad.item() == pytest.approx(wanted, rel=1e-3)


def test_fixing_leaves_what_was_learned_in_the_buffer() -> None:
    x = normal(64, 64)
    quantizer = calibrated(INT4_BLOCK, x)
    start = quantizer.amax.clone()
    quantizer.learn_amax("lsq")
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    (quantizer(x) - x).square().sum().backward()
    optimizer.step()
    learned, state = quantizer(x).detach(), quantizer.named_state()["amax"].detach()

    quantizer.fix_amax()

    assert not torch.equal(quantizer.amax, start)
    assert torch.equal(quantizer.amax, state)
    assert torch.equal(quantizer(x), learned)
    assert list(quantizer.parameters()) == []
    assert sorted(quantizer.state_dict()) == ["amax", "calibrated"]


def test_pact_gives_the_range_mask_back() -> None:
    quantizer = calibrated(INT8, normal(4, 4))
    quantizer.learn_amax("pact")
    quantizer.fix_amax()

    assert quantizer.range_mask


def test_new_state_while_learning_is_where_learning_goes_on() -> None:
    quantizer = calibrated(INT8, normal(4, 4))
    quantizer.learn_amax("lsq")
    assert quantizer.amax_shift is not None
    torch.nn.init.constant_(quantizer.amax_shift, 1.0)
    assert quantizer.named_state()["amax"].item() == 2 * quantizer.amax.item()

    quantizer.set_state(amax=torch.tensor(3.0))

    assert quantizer.named_state()["amax"].item() == 3.0


def test_the_shift_stays_fp32_and_goes_through_copies_and_state_dicts() -> None:
    quantizer = calibrated(INT8, normal(4, 4))
    quantizer.learn_amax("lsq")
    assert quantizer.amax_shift is not None
    torch.nn.init.constant_(quantizer.amax_shift, 0.30000001)

    other = copy.deepcopy(quantizer).to(torch.bfloat16)

    assert other.amax_shift is not None
    assert other.amax_shift.dtype == torch.float32
    assert torch.equal(other.amax_shift, quantizer.amax_shift)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.state_tensors()[0], quantizer.state_tensors()[0])


def test_learning_keeps_nothing_for_backward_but_the_input_and_the_scales() -> None:
    x = normal(64, 64).requires_grad_()
    quantizer = calibrated(INT4_BLOCK, x)
    quantizer.learn_amax("lsq")
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = quantizer(x)

    assert sum(kept.values()) == x.nbytes + quantizer.amax.nbytes
    assert output.requires_grad


@pytest.mark.parametrize(
    ("spec", "estimator", "message"),
    [
        (
            MXFP4,
            "lsq",
            r"e2m1 block\{-1:32\} e8m0 dynamic has no calibrated amax, whose scales could be learned",
        ),
        (
            INT4_BLOCK,
            "pact",
            r"'pact' learns one clipping value per tensor, found int4 block\{-1:16\}; use 'lsq'",
        ),
        (INT8, "lqs", r"unknown estimator 'lqs'; known: lsq, pact\. Did you mean 'lsq'\?"),
    ],
)
def test_what_cannot_be_learned(spec: QuantSpec, estimator: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TensorQuantizer(spec, (64, 64)).learn_amax(estimator)  # type: ignore[arg-type]
