"""Every checkpoint route carries the state: state dicts, strict loading, copies."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.core.formats import PerBlock, PerChannel, QuantSpec
from octavo.core.quantizers import SequentialQuantizer, TensorQuantizer

NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0)
X = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))


def fresh() -> SequentialQuantizer:
    return SequentialQuantizer(
        [TensorQuantizer(NVFP4, (4, 32)), TensorQuantizer(QuantSpec("int8", PerChannel()), (4, 32))]
    )


def calibrated() -> SequentialQuantizer:
    chain = fresh()
    chain[0].set_state(amax=X.abs().reshape(4, 2, 16).amax(-1), global_amax=X.abs().max())
    chain[1].set_state(amax=X.abs().amax(-1))
    return chain


def test_strict_round_trip_through_safetensors(tmp_path: Path) -> None:
    source, target = calibrated(), fresh()
    save_file(source.state_dict(), tmp_path / "state.safetensors")
    result = target.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)

    assert result == ([], [])
    assert not any(stage.needs_calibration for stage in target.stages())
    assert torch.equal(target(X), source(X))


def test_a_state_that_was_never_calibrated_stays_so() -> None:
    target = calibrated()
    target.load_state_dict(fresh().state_dict())

    assert [stage.needs_calibration for stage in target.stages()] == [True, True]
    assert target(X).isnan().all()


@pytest.mark.parametrize("name", ["0.amax", "0.global_amax", "1.amax", "1.calibrated"])
def test_a_missing_buffer_is_an_error(name: str) -> None:
    state = calibrated().state_dict()
    del state[name]
    with pytest.raises(RuntimeError, match=f'Missing key\\(s\\) in state_dict: "{name}"'):
        fresh().load_state_dict(state)


def test_a_buffer_of_another_shape_is_an_error() -> None:
    state = {**calibrated().state_dict(), "1.amax": torch.ones(5)}
    with pytest.raises(RuntimeError, match=r"size mismatch for 1.amax.*\[5\].*\[4\]"):
        fresh().load_state_dict(state)


def test_loading_casts_to_fp32() -> None:
    target = TensorQuantizer(QuantSpec("int8"))
    target.load_state_dict({"amax": torch.tensor(1.5, dtype=torch.bfloat16), "calibrated": torch.tensor(1)})

    assert (target.amax.dtype, target.amax.item()) == (torch.float32, 1.5)
    assert target.calibrated.dtype == torch.uint8
    assert not target.needs_calibration


def test_assigning_casts_to_fp32() -> None:
    target = TensorQuantizer(QuantSpec("int8"))
    state = {"amax": torch.tensor(1.5, dtype=torch.bfloat16), "calibrated": torch.tensor(1)}
    target.load_state_dict(state, assign=True)

    assert target.amax.dtype == torch.float32
    assert target.calibrated.dtype == torch.uint8


def test_a_copy_is_equal_and_apart() -> None:
    source = calibrated()
    source[1].enabled, source[0].range_mask = False, False
    expected = source(X)
    twin = copy.deepcopy(source)

    assert torch.equal(twin(X), expected)
    assert (twin[1].enabled, twin[0].range_mask, twin[0].spec) == (False, False, NVFP4)
    twin[0].set_state(amax=torch.ones(4, 2), global_amax=torch.tensor(1.0))
    twin[1].enabled = True
    assert not torch.equal(twin(X), expected)
    assert torch.equal(source(X), expected)
