"""What algorithms chose is what is stored: codes and scales survive finalizing and export, and a model reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from helpers.adapters_models import tiny_model, tokens
from helpers.tiny import tiny_llama, token_batches
from octavo.core.evaluation.read_back import exporter_of
from octavo.core.modules import quantized_layers
from octavo.core.packed import PackedTensor

SEARCHED = {"method": "gptq", "scales": "search", "act_order": True, "sweeps": 1}
SWEPT = {"method": "mse", "fp8_scale_sweep": True}
CASES: list[tuple[str, Any, torch.dtype, str | None]] = [
    ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", ["mse", "gptq"], torch.bfloat16, None),
    ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", SEARCHED, torch.float32, None),
    ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "hqq", torch.bfloat16, None),
    ("INT8_DEFAULT_CFG", "gptq", torch.bfloat16, None),
    ("FP8_DEFAULT_CFG", SEARCHED, torch.bfloat16, None),
    ("NVFP4_DEFAULT_CFG", "gptq", torch.bfloat16, None),
    ("NVFP4_DEFAULT_CFG", SEARCHED, torch.bfloat16, "vllm"),
    ("NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG", [SWEPT, "gptq"], torch.bfloat16, "vllm"),
    ("NVFP4_FOUR_OVER_SIX_CFG", ["mse", "gptq"], torch.bfloat16, "vllm"),
    ("MXFP4_DEFAULT_CFG", SEARCHED, torch.bfloat16, None),
]


@pytest.mark.parametrize(("preset", "algorithm", "dtype", "target"), CASES, ids=str)
def test_codes_survive_export(
    preset: str, algorithm: Any, dtype: torch.dtype, target: str | None, tmp_path: Path
) -> None:
    sizes = {"num_hidden_layers": 1}
    model, batches = tiny_llama(dtype, **sizes), token_batches()
    octavo.quantize(model, {**octavo.preset(preset), "algorithm": algorithm}, batches, quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True, target=target)

    with octavo.finalized(model, "unified_hf", target), torch.no_grad():
        expected = {
            f"{name}.weight": (layer.quantizers()["weight_quantizer"](weight), weight)
            for name, layer in quantized_layers(model)
            for weight in layer.quantized_weights().values()
        }
        logits = model(batches[0]).logits

    stored = {
        name: value.dequantize()
        for name, value in exporter_of(tmp_path / "out").open(tmp_path / "out").tensors()
        if isinstance(value, PackedTensor)
    }
    assert stored.keys() == expected.keys()
    for name, (rounded, weight) in expected.items():
        assert torch.equal(stored[name], rounded), name
        # INT scales are stored with another last bit than the simulation's.
        if "hqq" not in str(algorithm):
            torch.testing.assert_close(rounded, weight, rtol=2**-7, atol=0)
    with torch.no_grad():
        assert torch.equal(octavo.load_quantized(tmp_path / "out")(batches[0]).logits, logits)


@pytest.mark.parametrize(
    ("preset", "algorithm"), [("NVFP4_DEFAULT_CFG", SEARCHED), ("INT8_WEIGHT_ONLY_CFG", "gptq")]
)
def test_stacked_experts(preset: str, algorithm: Any, tmp_path: Path) -> None:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_hidden_layers": 1}
    model, plain = tiny_model("qwen3_moe", **sizes), dict(tiny_model("qwen3_moe", **sizes).named_parameters())
    batch = {"input_ids": tokens(8, 32)}

    octavo.quantize(model, {**octavo.preset(preset), "algorithm": algorithm}, [batch], quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    rows = {row["weight"]: row for row in octavo.history(model)[-1].state["report"]["weights"]}
    name = "model.layers.0.mlp.experts.down_proj"
    assert {f"{name}[{index}]" for index in range(4)} <= rows.keys()
    assert all(row["error_after"] <= row["error_before"] for row in rows.values())
    experts = model.get_submodule("model.layers.0.mlp.experts")
    stored = dict(exporter_of(tmp_path / "out").open(tmp_path / "out").tensors())
    for index in range(4):
        packed: Any = stored[f"model.layers.0.mlp.experts.{index}.down_proj.weight"]
        solved = experts.down_proj[index].detach()  # type: ignore[index]
        torch.testing.assert_close(packed.dequantize(), solved, rtol=2**-20, atol=0)
        assert (solved - plain[name][index]).norm() < 0.5 * plain[name][index].norm()
    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        logits = model(**batch).logits
    with torch.no_grad():
        assert torch.equal(octavo.load_quantized(tmp_path / "out")(**batch).logits, logits)
