"""What cannot be packed is named, and nothing is changed; packed weights refuse what needs the original ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.calibration_snapshot import snapshot
from helpers.compressed_models import quantized_llama, weights_only
from helpers.tiny import tiny_llama, token_batches
from octavo.core.errors import ConfigError, ExportError, ModeError, PlanError, PluginError, UnsupportedError


def packed() -> nn.Module:
    return octavo.compress(quantized_llama("FP8_DEFAULT_CFG"), quiet=True)


def refuses(model: nn.Module, error: type[Exception], message: str, **options: Any) -> None:
    before = snapshot(model)
    with pytest.raises(error, match=message):
        octavo.compress(model, **options)
    assert snapshot(model) == before


def test_a_model_that_is_not_quantized_or_not_calibrated() -> None:
    refuses(tiny_llama(), ModeError, "not quantized; call octavo.quantize first")
    waiting = quantized_llama("FP8_DEFAULT_CFG")
    octavo.set_quantizer_attribute(waiting, "*input_quantizer", {"num_bits": 8})
    refuses(
        waiting, ModeError, r"7 quantizers were never calibrated: .*q_proj.input_quantizer.*octavo.calibrate"
    )


def test_a_folded_model() -> None:
    model = octavo.fold_weight(quantized_llama("FP8_DEFAULT_CFG"))
    refuses(model, ModeError, "weights are folded: .* to compress it, load and quantize the original")


def test_patterns_that_match_nothing() -> None:
    model = quantized_llama("FP8_DEFAULT_CFG")
    refuses(
        model,
        ConfigError,
        r"'model\.layers\.0\.mlp\.gate' matches none of the 7 layers .* Did you mean 'model.layers.0.mlp.gate_proj'",
        patterns=["*q_proj", "model.layers.0.mlp.gate"],
    )


def test_weights_that_are_not_here() -> None:
    model = quantized_llama("FP8_DEFAULT_CFG")
    model.model.layers[0].mlp.to("meta")  # type: ignore[index, union-attr]
    with pytest.raises(PlanError, match=r"on the meta device, without values \(first 'model.layers.0.mlp"):
        octavo.compress(model)


def test_nothing_to_pack() -> None:
    refuses(packed(), ModeError, "no weight is left to pack: those of these layers are packed already")
    model = quantized_llama("FP8_DEFAULT_CFG")
    octavo.disable_quantizer(model, "*weight_quantizer")
    refuses(model, ModeError, "or their quantizers are off", patterns="*mlp*")


def test_a_weight_tied_since() -> None:
    model = quantized_llama("FP8_DEFAULT_CFG")
    attention = model.model.layers[0].self_attn  # type: ignore[index, union-attr]
    attention.v_proj.weight = attention.k_proj.weight
    refuses(model, UnsupportedError, "2 weights cannot be packed: .*k_proj.weight is tied to .*v_proj.weight")


def test_a_format_that_the_dialect_does_not_store() -> None:
    model = quantized_llama(weights_only(num_bits=3, block_sizes={-1: 64}))
    refuses(
        model,
        UnsupportedError,
        r"7 weights cannot be packed: .*q_proj.weight \(weights int3 block\{-1:64\}, inputs None\) has no place in the "
        "dialect unified_hf"
        ".*dialect='neutral'",
    )
    conv = octavo.quantize(nn.Sequential(nn.Conv2d(4, 4, 3)), weights_only(num_bits=8), quiet=True)
    refuses(
        conv,
        UnsupportedError,
        r"0.weight \(QuantConv2d, int8 tensor\) has no place in the dialect unified_hf",
    )


def test_three_formats_in_turn() -> None:
    stages = [{"num_bits": 4, "block_sizes": {-1: 32}}, {"num_bits": 8}, {"num_bits": (4, 3)}]
    config = {"quant_cfg": [{"quantizer_name": "*weight_quantizer", "cfg": stages}], "algorithm": "max"}
    model = octavo.quantize(nn.Sequential(nn.Linear(32, 8)), config, quiet=True)
    message = r"0.weight has 3 formats in turn \(int4 block\{-1:32\} then int8 tensor then e4m3 tensor\)"
    refuses(model, UnsupportedError, message, dialect="neutral")


def test_dialects_and_targets() -> None:
    model = quantized_llama("FP8_DEFAULT_CFG")
    refuses(model, PluginError, "unified_hg", dialect="unified_hg")
    message = "'vllm' has a dialect's numbers; found dialect='neutral'"
    refuses(model, ConfigError, message, dialect="neutral", target="vllm")
    refuses(model, ConfigError, "vlm", target="vlm")
    octavo.finalize(model, "unified_hf")
    message = "has the numbers of unified_hf, asked for neutral; .*or call octavo.unfinalize"
    refuses(model, ModeError, message, dialect="neutral")
    part = octavo.compress(quantized_llama("FP8_DEFAULT_CFG"), "*mlp*", quiet=True)
    message = "numbers of unified_hf in packed weights, asked for compressed_tensors"
    refuses(part, ModeError, message, dialect="compressed_tensors")
    neutral = octavo.compress(quantized_llama("FP8_DEFAULT_CFG"), "*mlp*", dialect="neutral", quiet=True)
    refuses(neutral, ModeError, "numbers of neutral in packed weights, asked for unified_hf")


@pytest.mark.parametrize(
    ("verb", "doing"),
    [
        (octavo.unquantize, "unquantize it"),
        (octavo.fold_weight, "fold them"),
        (octavo.calibrate, "calibrate it"),
        (lambda model: octavo.finalize(model, "unified_hf"), "finalize them"),
        (lambda model: octavo.quantize(model, "INT8_DEFAULT_CFG", token_batches()), "unquantize"),
    ],
    ids=["unquantize", "fold_weight", "calibrate", "finalize", "quantize"],
)
@pytest.mark.parametrize("dialect", ["unified_hf", "neutral"])
def test_what_needs_the_original_weights(
    verb: Callable[[nn.Module], object], doing: str, dialect: str
) -> None:
    model = octavo.compress(quantized_llama("FP8_DEFAULT_CFG"), dialect=dialect, quiet=True)
    before = snapshot(model)
    with pytest.raises(ModeError, match=doing):
        verb(model)
    assert snapshot(model) == before


def test_quantizers_of_packed_weights_do_not_change() -> None:
    model = octavo.compress(quantized_llama("FP8_DEFAULT_CFG"), dialect="neutral", quiet=True)
    with pytest.raises(ModeError, match=r"7 layers hold packed weights .*cannot change their quantizers"):
        octavo.disable_quantizer(model, "*weight_quantizer")

    octavo.disable_quantizer(model, "*input_quantizer")

    with pytest.raises(ModeError, match="packed in the numbers of unified_hf, which stay; for changing"):
        octavo.disable_quantizer(packed(), "*input_quantizer")


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        (
            "compressed_tensors",
            "numbers of compressed_tensors, asked for unified_hf. .*octavo.convert_checkpoint",
        ),
        (
            "neutral",
            r"numbers of the simulation \(neutral\), asked for unified_hf. Compress the quantized original",
        ),
    ],
)
def test_export_into_another_dialect(dialect: str, message: str, tmp_path: Path) -> None:
    model = octavo.compress(quantized_llama("FP8_DEFAULT_CFG"), dialect=dialect, quiet=True)
    with pytest.raises(ExportError, match=message):
        octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_the_engine_builders_reader_quantizes_itself(tmp_path: Path) -> None:
    model = octavo.quantize(tiny_llama(torch.bfloat16), "INT8_WEIGHT_ONLY_CFG", quiet=True)
    octavo.compress(model, dialect="tensorrt_llm", target="trtllm", quiet=True)
    with pytest.raises(ExportError, match=r"quantizes .*q_proj.weight.* itself, from the original weights"):
        octavo.export_tensorrt_llm_checkpoint(model, export_dir=tmp_path / "out", target="trtllm")


def test_decompress_needs_packed_weights() -> None:
    with pytest.raises(ModeError, match="no weight of this model is packed"):
        octavo.decompress(quantized_llama("FP8_DEFAULT_CFG"))


def test_what_a_packed_weight_cannot_do_names_decompress() -> None:
    layer: Any = packed().get_submodule("model.layers.0.mlp.up_proj")
    with pytest.raises(UnsupportedError, match="decompress"):
        layer.weight.abs()
