"""`save` and `restore`: the restored model computes the same bits as the saved one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import octavo
from helpers.calibration_models import Branches, rows
from helpers.calibration_snapshot import same_bits, state_bytes
from helpers.modes_saved import WITH_KV, logits, plain, quantized, scrambled
from helpers.tiny import token_batches
from octavo.core.modules import QuantAttention

PRESETS = [WITH_KV, "NVFP4_DEFAULT_CFG+NVFP4_KV_CFG", "INT8_DEFAULT_CFG", "MXFP4_DEFAULT_CFG"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("presets", PRESETS)
def test_logits_state_and_history_are_equal(presets: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = quantized(presets, dtype=dtype)
    octavo.save(model, tmp_path / "saved")

    restored = scrambled(dtype=dtype)
    assert octavo.restore(restored, tmp_path / "saved") is restored

    assert same_bits(logits(restored), logits(model))
    assert state_bytes(restored) == state_bytes(model)
    assert octavo.history(restored) == octavo.history(model)
    assert [type(m) for m in restored.modules()] == [type(m) for m in model.modules()]


@pytest.mark.parametrize("tied", [False, True])
def test_shards_hold_what_one_file_does(tied: bool, tmp_path: Path) -> None:
    model = quantized(tie_word_embeddings=tied)
    octavo.save(model, tmp_path / "saved", max_shard_bytes=100_000)

    shards = sorted(path.name for path in (tmp_path / "saved").glob("*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert len(shards) >= 3
    restored = octavo.restore(scrambled(tie_word_embeddings=tied), tmp_path / "saved")
    assert state_bytes(restored) == state_bytes(model)
    assert same_bits(logits(restored), logits(model))


@pytest.mark.parametrize("limit", [0, "5GB"], ids=str)
def test_a_shard_has_a_size(limit: Any, tmp_path: Path) -> None:
    with pytest.raises(
        octavo.ExportError, match=f"max_shard_bytes is a whole number, at least 1; found {limit!r}$"
    ):
        octavo.save(plain(), tmp_path / "saved", max_shard_bytes=limit)
    assert not (tmp_path / "saved").exists()


def test_a_restored_model_goes_on_like_the_saved_one(tmp_path: Path) -> None:
    model = quantized()
    octavo.save(model, tmp_path / "saved")
    restored = octavo.restore(scrambled(), str(tmp_path / "saved"))

    for number, one in enumerate((model, restored)):
        octavo.export_hf_checkpoint(one, export_dir=tmp_path / str(number), quiet=True)
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in "01")
    assert first == second

    octavo.unquantize(restored)
    assert state_bytes(restored) == state_bytes(plain())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = quantized(tie_word_embeddings=True)
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(scrambled(tie_word_embeddings=True), tmp_path / "saved")

    assert restored.lm_head.weight is restored.model.embed_tokens.weight  # type: ignore[union-attr]
    assert same_bits(logits(restored), logits(model))


def test_a_plain_model_is_saved_with_an_empty_record(tmp_path: Path) -> None:
    octavo.save(plain(), tmp_path / "saved")

    restored = octavo.restore(scrambled(), tmp_path / "saved")

    assert octavo.history(restored) == ()
    assert state_bytes(restored) == state_bytes(plain())


def test_a_model_of_no_framework(tmp_path: Path) -> None:
    loop = [{"x": rows(), "both": True}]
    model = octavo.quantize(Branches(), "FP8_DEFAULT_CFG", loop, quiet=True)
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(Branches(), tmp_path / "saved")

    assert same_bits(restored(rows(1), both=True).detach(), model(rows(1), both=True).detach())


def test_a_checkpoint_read_back_can_be_saved_and_restored(tmp_path: Path) -> None:
    octavo.export_hf_checkpoint(quantized(), export_dir=tmp_path / "out", quiet=True)
    served = octavo.load_quantized(tmp_path / "out")
    octavo.save(served, tmp_path / "saved")

    restored = octavo.restore(plain(), tmp_path / "saved")

    assert any(isinstance(module, QuantAttention) for module in restored.modules())
    assert same_bits(logits(restored), logits(served))


def test_the_bundled_model(stories: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(stories)
    ids = token_batches(1)[0]
    octavo.quantize(model, "NVFP4_DEFAULT_CFG", [ids], quiet=True)
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(AutoModelForCausalLM.from_pretrained(stories), tmp_path / "saved")

    with torch.no_grad():
        assert same_bits(restored(ids).logits, model(ids).logits)
