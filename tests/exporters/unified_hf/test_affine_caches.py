"""Caches with biases are stored as ModelOpt stores them; rotated ones are left out, and the export says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from helpers.exporters_models import (
    export,
    json_of,
    plain_model,
    quantized,
    tensors_of,
    tokens,
    with_tensors,
)
from octavo.core.errors import CheckpointError, ExportError, PlanError

K_PROJ = "model.layers.1.self_attn.k_proj"
AFFINE = ["FP8_AFFINE_KV_CFG", "NVFP4_AFFINE_KV_CFG"]
FP8 = {"num_bits": (4, 3)}
BIAS = {-2: None, -4: None}


def joined(cache: str, weights: str = "FP8_DEFAULT_CFG") -> dict[str, Any]:
    return octavo.merge_configs(weights, cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cache", AFFINE)
def test_names_dtypes_metadata_and_values(cache: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = quantized(joined(cache), dtype)
    stored, nested, flat = _written(export(model, tmp_path / "out"))
    keys: Any = model.get_submodule("model.layers.1.self_attn.k_bmm_quantizer")

    assert (stored[f"{K_PROJ}.k_bias"].dtype, stored[f"{K_PROJ}.k_bias"].shape) == (dtype, (1, 2, 1, 32))
    assert torch.equal(stored[f"{K_PROJ}.k_bias"].float(), keys.bias_value)
    assert sum(name.endswith(("k_bias", "v_bias")) for name in stored) == 4
    assert nested["kv_cache_quant_algo"] == ("FP8" if cache == AFFINE[0] else "NVFP4_AFFINE")
    fp8 = {"dynamic": False, "num_bits": 8, "type": "float"}
    assert flat["kv_cache_scheme"] == (fp8 if cache == AFFINE[0] else "NVFP4_AFFINE")


@pytest.mark.parametrize("file", ["hf_quant_config.json", "config.json"])
@pytest.mark.parametrize("cache", AFFINE)
def test_read_back_by_either_description(cache: str, file: str, tmp_path: Path) -> None:
    model = quantized(joined(cache))
    directory = export(model, tmp_path / "out")
    if file == "config.json":
        (directory / "hf_quant_config.json").unlink()

    served = octavo.load_quantized(directory)

    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        assert torch.equal(served(tokens()).logits, model(tokens()).logits)


def _without(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{K_PROJ}.k_bias"]


def _of_one_head(tensors: dict[str, Tensor]) -> None:
    tensors[f"{K_PROJ}.k_bias"] = tensors[f"{K_PROJ}.k_bias"].flatten()


def _not_finite(tensors: dict[str, Tensor]) -> None:
    tensors[f"{K_PROJ}.k_bias"][0, 0, 0, 0] = torch.inf


DAMAGE: list[tuple[Any, str]] = [
    (_without, r"1\.self_attn\.k_proj\.k_bias' is missing, which NVFP4_AFFINE needs"),
    (
        _of_one_head,
        r"k_bias.* has a float of shape \[1, heads, 1, head_dim\], found torch.float32 of shape \(64,\)",
    ),
    (_not_finite, r"k_bias.* holds NaN or infinite values"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_damaged_biases(damage: Any, message: str, tmp_path: Path) -> None:
    directory = with_tensors(export(quantized(joined(AFFINE[1])), tmp_path / "out"), damage)

    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(directory)


def test_biases_of_keys_alone_are_refused(tmp_path: Path) -> None:
    config = joined("FP8_KV_CFG")
    config["quant_cfg"].append({"quantizer_name": "*k_bmm_quantizer", "cfg": {**FP8, "bias": BIAS}})

    with pytest.raises(
        ExportError,
        match=r"biases of all keys and values or of none .*0\.self_attn\.k_bmm.* and none at .*v_bmm",
    ):
        export(quantized(config), tmp_path / "out")


@pytest.mark.parametrize("bias", [{-1: None, "type": "dynamic"}, {**BIAS, -3: None}], ids=str)
def test_biases_of_another_shape_have_no_place(bias: dict[Any, Any], tmp_path: Path) -> None:
    config = joined("FP8_KV_CFG")
    config["quant_cfg"].append({"quantizer_name": "*[kv]_bmm_quantizer", "cfg": {**FP8, "bias": bias}})
    report = octavo.export_hf_checkpoint(quantized(config), export_dir=tmp_path / "out", quiet=True)

    assert report.warnings[0].startswith(
        "the dialect has no place for 4 quantizers: model.layers.0.self_attn.k_bmm"
    )
    assert _written(tmp_path / "out")[1]["kv_cache_quant_algo"] is None


def test_a_rotated_cache_is_left_out_and_the_rest_computes_the_same(tmp_path: Path) -> None:
    model = quantized(joined("NVFP4_KV_ROTATE_CFG"))
    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    layers = "model.layers.0.self_attn, model.layers.1.self_attn"
    assert report.warnings[1] == (
        "checkpoints do not say that queries and keys are rotated, so the cache of 2 layers is left as it is "
        f"({layers}); octavo.save keeps it"
    )
    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        assert torch.equal(octavo.load_quantized(tmp_path / "out")(tokens()).logits, model(tokens()).logits)
        assert "rotated" not in str(model)
    assert str(model).count("rotated") == 4


def test_a_rotated_cache_alone_is_nothing_to_store(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no quantizer is on that a checkpoint stores"):
        export(quantized("NVFP4_KV_ROTATE_CFG"), tmp_path / "out")


@pytest.mark.parametrize(
    ("cache", "what"), [("FP8_AFFINE_KV_CFG", "mean bias over -4, -2"), ("NVFP4_KV_ROTATE_CFG", "rotated")]
)
def test_engines_are_said_to_refuse_both(cache: str, what: str, tmp_path: Path) -> None:
    said = (
        rf"vllm and queries, keys or values {what}: refused \(no engine is known that rotates, or subtracts"
    )
    with pytest.raises(PlanError, match=said):
        octavo.quantize(plain_model(), joined(cache), [tokens()], quiet=True, target="vllm")
    with pytest.raises(ExportError, match=said):
        export(quantized(joined(cache)), tmp_path / "out", target="vllm")


def _written(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Return (tensors, hf_quant_config.json, config.json's quantization_config)."""
    nested = json_of(directory / "hf_quant_config.json")["quantization"]
    return tensors_of(directory), nested, json_of(directory / "config.json")["quantization_config"]


@pytest.mark.parametrize("dialect", ["compressed_tensors", "tensorrt_llm"])
@pytest.mark.parametrize(
    ("cache", "what"), [("FP8_AFFINE_KV_CFG", "mean bias over -4, -2"), ("NVFP4_KV_ROTATE_CFG", "rotated")]
)
def test_other_dialects_have_no_place_for_them(dialect: str, cache: str, what: str, tmp_path: Path) -> None:
    exporter = octavo.plugins().exporter(dialect)
    with pytest.raises(
        ExportError, match=rf"no place for biases and rotations .* found model\.layers\.0.*: {what}"
    ):
        exporter.export(quantized(joined(cache)), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_biased_cache_is_not_converted(tmp_path: Path) -> None:
    export(quantized(joined("FP8_AFFINE_KV_CFG")), tmp_path / "unified")
    with pytest.raises(
        ExportError, match=r"self_attn\.k_bmm_quantizer has a bias, for which compressed-tensors"
    ):
        octavo.convert_checkpoint(
            tmp_path / "unified", tmp_path / "out", dialect="compressed_tensors", lossy=True, quiet=True
        )
    assert not (tmp_path / "out").exists()
