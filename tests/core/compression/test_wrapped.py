"""What compressed models offer to what wraps them: how parts are stored, casts, decompressing from outside."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from helpers.compressed_models import FORMATS, quantized_llama
from helpers.tiny import token_batches
from octavo.core.errors import ModeError
from octavo.core.modes.record import history
from octavo.core.modules.packed_parameter import PackedParameter


def packed_parameters(model: nn.Module) -> dict[str, PackedParameter]:
    return {name: one for name, one in model.named_modules() if isinstance(one, PackedParameter)}


@pytest.mark.parametrize("name", ["fp8", "int8", "nvfp4", "int4 then fp8"])
def test_arrays_are_frozen_parameters_and_single_numbers_buffers_all_bytes(name: str) -> None:
    config = FORMATS[name]
    model = octavo.compress(
        quantized_llama(getattr(octavo, config) if isinstance(config, str) else config),
        dialect="neutral",
        quiet=True,
    )

    for one in packed_parameters(model).values():
        stored = one.tensor()
        numbers = [part for part in ("scale", "global_scale") if getattr(stored, part) is not None]
        assert {part for part, _ in one.named_buffers()} == {
            part for part in numbers if getattr(stored, part).dim() == 0
        }
        for tensor in (*one.parameters(), *one.buffers()):
            assert tensor.dtype == torch.uint8
            assert tensor.dim() > 0
            assert not tensor.requires_grad


def test_casting_the_model_leaves_codes_and_scales_and_it_runs() -> None:
    model = octavo.compress(
        quantized_llama(octavo.NVFP4_DEFAULT_CFG, torch.float32), dialect="neutral", quiet=True
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "_packed." in name}
    dense = octavo.decompress(copy.deepcopy(model))

    found = model.to(torch.bfloat16)(token_batches()[0]).logits

    assert found.dtype == torch.bfloat16
    assert torch.equal(found, dense.to(torch.bfloat16)(token_batches()[0]).logits), "cast like dense weights"
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_decompressing_what_wraps_a_model_decompresses_the_model() -> None:
    model = octavo.compress(quantized_llama(octavo.FP8_DEFAULT_CFG), dialect="neutral", quiet=True)
    wrapper = nn.Sequential(model)
    expected = model(token_batches()[0]).logits

    assert octavo.decompress(wrapper) is wrapper

    assert [record.mode for record in history(model)] == ["quantize", "fold_weight"]
    assert not history(wrapper)
    assert not packed_parameters(model)
    assert torch.equal(model(token_batches()[0]).logits, expected)


def test_what_wraps_a_model_is_not_saved_without_its_modes(tmp_path: Path) -> None:
    wrapper = nn.Sequential(quantized_llama(octavo.FP8_DEFAULT_CFG))

    with pytest.raises(
        ModeError, match=r"those of '0', a LlamaForCausalLM inside this Sequential; save that one"
    ):
        octavo.save(wrapper, tmp_path / "saved")

    assert not (tmp_path / "saved").exists()
