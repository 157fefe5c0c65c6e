"""State moves with its model and never changes its dtype or values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from octavo.core.formats import PerBlock, QuantSpec
from octavo.core.quantizers import SequentialQuantizer, TensorQuantizer

VALUE = 1e30  # half precision would make it infinite, bfloat16 would round it
NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0)
CASTS: dict[str, Callable[[nn.Module], Any]] = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "float": lambda m: m.float(),
    "to": lambda m: m.to(torch.float16),
    "to_device_and_dtype": lambda m: m.to("cpu", torch.bfloat16),
    "type": lambda m: m.type(torch.float16),
    "there_and_back": lambda m: m.half().double().bfloat16().float(),
}


def quantizer() -> TensorQuantizer:
    made = TensorQuantizer(NVFP4, (2, 32))
    made.set_state(amax=torch.full((2, 2), VALUE), global_amax=torch.tensor(VALUE))
    made.pre_quant_scale = torch.full((32,), VALUE)
    return made


def dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_casts_leave_dtype_and_values(cast: Callable[[nn.Module], Any]) -> None:
    made = quantizer()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}

    assert cast(made) is made

    assert dtypes(made) == {
        "amax": torch.float32,
        "global_amax": torch.float32,
        "pre_quant_scale": torch.float32,
        "calibrated": torch.uint8,
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_casts_of_a_model_around_it(cast: Callable[[nn.Module], Any]) -> None:
    model = nn.ModuleDict(
        {"layer": nn.Linear(4, 4), "chain": SequentialQuantizer([quantizer(), quantizer()])}
    )
    before = dtypes(model["chain"])
    cast(model)

    assert dtypes(model["chain"]) == before
    assert (model["chain"][1].amax == torch.tensor(VALUE)).all()


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_meta_device(dtype: torch.dtype | None) -> None:
    made = quantizer()
    expected = dtypes(made)
    made.to(device="meta", dtype=dtype)

    assert all(tensor.is_meta for tensor in made.buffers())
    assert dtypes(made) == expected
    assert made.to_empty(device="cpu").amax.shape == (2, 2)
    assert dtypes(made) == expected


def test_meta_tensors_pass_through() -> None:
    made = quantizer().to("meta")
    result = made(torch.empty(5, 2, 32, device="meta", dtype=torch.bfloat16)[0])

    assert (result.shape, result.dtype, result.is_meta) == ((2, 32), torch.bfloat16, True)


def test_state_has_no_parameters() -> None:
    # Optimizers, weight decay and FSDP must never see it.
    assert list(quantizer().parameters()) == []
