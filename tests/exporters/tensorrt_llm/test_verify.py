"""`verify` over ModelOpt's TensorRT-LLM checkpoints.

The classes of TensorRT-LLM 0.17, filled with these very files, took FP8, INT4 and SmoothQuant, and could not read the
codes of weight-only INT8; NVFP4 is held to the source of a later reader.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import octavo
from helpers.exporters_models import with_json
from helpers.verification import Tensors, errors, places, warnings

UNREADABLE = "INT8_WEIGHT_ONLY_CFG"
QKV = "transformer.layers.0.attention.qkv"


def reference(shared: Path, preset: str, layout: str = "tp2pp2") -> Path:
    return shared / "reference" / "modelopt" / "dense-trtllm" / preset / layout


@pytest.mark.parametrize("layout", ["tp1pp1", "tp2pp2"])
def test_the_verdict_on_each_reference_is_the_readers(shared: Path, layout: str) -> None:
    presets = [
        path.name for path in (shared / "reference" / "modelopt" / "dense-trtllm").iterdir() if path.is_dir()
    ]
    found = {p: octavo.verify_checkpoint(reference(shared, p, layout), "trtllm") for p in presets}

    assert len(presets) == 7
    assert {preset for preset, findings in found.items() if findings} == {UNREADABLE}
    (first, *_) = errors(reference(shared, UNREADABLE, layout), "trtllm")
    assert first.place == f"rank0.safetensors: {QKV}.weight"
    assert first.found.startswith("I8 [")
    assert first.expected.startswith("F16 or BF16 or F32 [")


def copied(
    shared: Path, to: Path, preset: str, rank: int = 2, change: Callable[[Tensors], Any] | None = None
) -> Path:
    """Copy a reference of four ranks, with the tensors of one of them changed."""
    to.mkdir()
    for file in reference(shared, preset).iterdir():
        shutil.copyfile(file, to / file.name)
    if change is not None:
        tensors = load_file(to / f"rank{rank}.safetensors")
        change(tensors)
        save_file(tensors, to / f"rank{rank}.safetensors")
    return to


DAMAGE: dict[str, tuple[str, Callable[[Tensors], Any], str]] = {
    "missing": (
        "FP8_DEFAULT_CFG", lambda t: t.pop(f"{QKV}.activation_scaling_factor"), f"{QKV}.activation_scaling_factor",
    ),
    "factor": ("INT4_AWQ_CFG", lambda t: t.pop(f"{QKV}.prequant_scaling_factor"), f"{QKV}.prequant_scaling_factor"),
    "rows": (
        "FP8_DEFAULT_CFG", lambda t: t.update({f"{QKV}.weight": t[f"{QKV}.weight"][1:].clone()}), f"{QKV}.weight",
    ),
    "zero": (
        "NVFP4_DEFAULT_CFG",
        lambda t: t.update({f"{QKV}.weights_scaling_factor_2": torch.zeros(())}),
        f"{QKV}.weights_scaling_factor_2",
    ),
    "cache": (
        "FP8_DEFAULT_CFG+FP8_KV_CFG",
        lambda t: t.pop("transformer.layers.0.attention.kv_cache_scaling_factor"),
        "transformer.layers.0.attention.kv_cache_scaling_factor",
    ),
    "head": ("FP8_DEFAULT_CFG", lambda t: t.pop("lm_head.weight"), "lm_head.weight"),
    "norm": ("FP8_DEFAULT_CFG", lambda t: t["transformer.ln_f.weight"].fill_(float("nan")), "transformer.ln_f.weight"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_its_rank(shared: Path, tmp_path: Path, damage: str) -> None:
    preset, change, name = DAMAGE[damage]

    found = errors(copied(shared, tmp_path / "copy", preset, change=change), "trtllm")
    assert places(found) == {f"rank2.safetensors: {name}"}


def test_extra_tensors_and_missing_ranks(shared: Path, tmp_path: Path) -> None:
    folder = copied(
        shared, tmp_path / "copy", "FP8_DEFAULT_CFG", change=lambda t: t.update(other=torch.ones(1))
    )
    assert [f.place for f in warnings(folder, "trtllm")] == ["rank2.safetensors: other"]
    (folder / "rank3.safetensors").unlink()
    (found,) = errors(folder, "trtllm")
    assert "rank3.safetensors" in found.found


CONFIG: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "field": (lambda c: c.pop("hidden_size"), "config.json: hidden_size", "none"),
    "Qwen": (lambda c: c.update(architecture="QWenForCausalLM", qwen_type="qwen"), "config.json: seq_length", "none"),
    "key": (lambda c: c["mapping"].update(dp_size=2), "config.json: mapping", "keys ['dp_size']"),
    "quantization key": (lambda c: c["quantization"].update(bits=8), "config.json: quantization", "keys ['bits']"),
    "world": (lambda c: c["mapping"].update(world_size=8), "config.json: mapping.world_size", "8"),
    "experts": (lambda c: c["mapping"].update(moe_ep_size=2), "config.json: mapping", "moe_tp_size·moe_ep_size = 4"),
    "layers": (lambda c: c.update(num_hidden_layers=3), "config.json: num_hidden_layers", "3"),
    "heads": (lambda c: c.update(num_attention_heads=5), "config.json: num_attention_heads", "5"),
    "kv": (
        lambda c: (c.update(num_key_value_heads=3, num_hidden_layers=4), c["mapping"].update(tp_size=4, pp_size=1)),
        "config.json: num_key_value_heads",
        "3",
    ),
    "algo": (
        lambda c: c["quantization"].update(quant_algo="NVFP4_AWQ"),
        "config.json: quantization.quant_algo",
        "'NVFP4_AWQ'",
    ),
    "cache": (
        lambda c: c["quantization"].update(kv_cache_quant_algo="FP4"),
        "config.json: quantization.kv_cache_quant_algo",
        "'FP4'",
    ),
    "positions": (lambda c: c.update(position_embedding_type="rope"), "config.json: position_embedding_type", "'rope'"),
}  # fmt: skip


@pytest.mark.parametrize("field", CONFIG)
def test_fields_of_the_config(shared: Path, tmp_path: Path, field: str) -> None:
    change, place, found = CONFIG[field]
    folder = copied(shared, tmp_path / "copy", "FP8_DEFAULT_CFG")
    with_json(folder / "config.json", change)

    assert [(f.place, f.found) for f in errors(folder, "trtllm")] == [(place, found)]


def test_a_list_of_excluded_modules_replaces_the_readers_own(shared: Path, tmp_path: Path) -> None:
    folder = copied(shared, tmp_path / "copy", "FP8_DEFAULT_CFG")
    with_json(folder / "config.json", lambda c: c["quantization"].update(exclude_modules=["*router"]))
    found = errors(folder, "trtllm")
    assert places(found) == {f"rank{rank}.safetensors: lm_head.weight" for rank in (2, 3)}
    assert found[0].advice == "List the module in exclude_modules."
    with_json(folder / "config.json", lambda c: c["quantization"].update(exclude_modules=None))
    assert errors(folder, "trtllm") == []


def test_other_readers_and_unknown_architectures(shared: Path, tmp_path: Path) -> None:
    (found,) = errors(reference(shared, "FP8_DEFAULT_CFG"), "vllm")
    assert "only TensorRT-LLM's engine builder takes this one" in found.expected
    folder = copied(shared, tmp_path / "copy", "FP8_DEFAULT_CFG")
    with_json(folder / "config.json", lambda c: c.update(architecture="DbrxForCausalLM"))
    (unknown,) = octavo.verify_checkpoint(folder, "trtllm")
    assert (unknown.severity, unknown.found) == ("warning", "'DbrxForCausalLM'")
