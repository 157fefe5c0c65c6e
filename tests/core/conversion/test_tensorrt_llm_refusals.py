"""Checkpoints that TensorRT-LLM's dialect has no place for; nothing is written then."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from helpers.conversions import Unified
from helpers.exporters_models import export, with_json, with_tensors
from helpers.integer_checkpoints import awq, written
from helpers.tensorrt_llm_models import quantized_llama
from octavo.core.conversion.converted import ConvertedCheckpoint
from octavo.core.conversion.survey import survey
from octavo.core.errors import CheckpointError, ExportError, UnsupportedError
from octavo.core.model.exporter import QuantizedCheckpoint
from octavo.exporters.tensorrt_llm.dialect import TensorRtLlmDialect

ATTENTION = "model.layers.0.self_attn"


def refused(message: str, source: Path, out: Path, dialect: str = "tensorrt_llm", **options: Any) -> None:
    with pytest.raises(ExportError, match=message):
        octavo.convert_checkpoint(source, out, dialect, quiet=True, lossy=True, **options)
    assert not out.exists()


def int8(directory: Path) -> Path:
    return export(quantized_llama("INT8_SMOOTHQUANT_CFG"), directory)


def test_fp32(unified: Unified, tmp_path: Path) -> None:
    message = "not quantized have dtype float32, and float16 or bfloat16 in TensorRT-LLM checkpoints"
    refused(message, unified("INT8"), tmp_path / "out")


def test_ranks(tmp_path: Path) -> None:
    source, out = int8(tmp_path / "unified"), tmp_path / "out"

    refused(
        r"compressed_tensors are not divided over ranks, .* found 2, 1 and 1",
        source,
        out,
        "compressed_tensors",
        tp=2,
    )
    refused(r"over tp 3, pp 1, ep 1: 2 key/value heads can be neither divided .* 3 ranks", source, out, tp=3)
    refused(
        r"sizes of a layout are whole numbers, at least 1; found Layout\(tp_size=1, pp_size=0",
        source,
        out,
        pp=0,
    )


def test_unknown_models(tmp_path: Path) -> None:
    source = int8(tmp_path / "unified")
    with_json(source / "config.json", lambda config: config.update(model_type="olmo"))

    refused(
        "TensorRT-LLM's names for models of type 'olmo' are not known; known are llama,",
        source,
        tmp_path / "out",
    )


def test_formats(tmp_path: Path) -> None:
    source = export(quantized_llama("MXFP8_DEFAULT_CFG"), tmp_path / "unified")

    message = (
        r"14 layers have formats that TensorRT-LLM checkpoints cannot store: model\.layers\.0\.\S+ \(weights e4m3 .* "
        "Linear layers are stored as FP8, .*; experts as FP8"
    )
    refused(message, source, tmp_path / "out")


def test_layers_of_several_formats_that_become_one(tmp_path: Path) -> None:
    model = quantized_llama("INT8_DEFAULT_CFG")
    octavo.disable_quantizer(model, "*layers.0.self_attn.v_proj*")
    source = export(model, tmp_path / "unified")

    message = r"layers\.0\.attention\.qkv .* is one layer in one format, made of .*v_proj: plain"
    refused(message, source, tmp_path / "out")


def with_other_factor(tensors: dict[str, Tensor]) -> None:
    tensors[f"{ATTENTION}.v_proj.pre_quant_scale"] *= 2


def without_factor(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{ATTENTION}.v_proj.pre_quant_scale"]


@pytest.mark.parametrize("change", [with_other_factor, without_factor])
def test_factors_on_one_input(change: Callable[[dict[str, Tensor]], None], tmp_path: Path) -> None:
    source = with_tensors(int8(tmp_path / "unified"), change)

    names = ", ".join(f"{ATTENTION}.{letter}_proj" for letter in "qkv")
    refused(f"holds {re.escape(names)} as one layer, whose input has one factor", source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.2.mtp.weight", "1 tensors of the model have no place .*: {}"),
        ("model.norm.extra", "models of type 'llama' have no place for 1 tensors of the checkpoint: {}"),
    ],
)
def test_tensors_without_a_place(name: str, message: str, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.ones(2, 2, dtype=torch.bfloat16)

    source = with_tensors(int8(tmp_path / "unified"), change)

    refused(message.format(re.escape(name)), source, tmp_path / "out")


def test_lost_tensors(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"]

    source = with_tensors(int8(tmp_path / "unified"), change)

    message = r"the checkpoint lacks tensors of its model: model\.norm\.weight; copy it again"
    with pytest.raises(CheckpointError, match=message):
        octavo.convert_checkpoint(source, tmp_path / "out", "tensorrt_llm", quiet=True)
    assert not (tmp_path / "out").exists()


def test_biases_of_a_cache(tmp_path: Path) -> None:
    model = quantized_llama(octavo.merge_configs("INT8_DEFAULT_CFG", "FP8_AFFINE_KV_CFG"))
    source = export(model, tmp_path / "unified")

    message = rf"and no biases; found biases of {re.escape(ATTENTION)}\.k_bmm_quantizer, "
    refused(message, source, tmp_path / "out")


def test_zero_points(tmp_path: Path) -> None:
    written(tmp_path / "awq", awq())

    refused(
        r"awq has codes with zero points, which are read and not written", tmp_path / "awq", tmp_path / "out"
    )


class InOrder:
    """A reader that another plugin might bring: what core asks of it, and nothing more."""

    def __init__(self, checkpoint: QuantizedCheckpoint) -> None:
        self._checkpoint = checkpoint
        self.directory, self.dtype, self.layers = checkpoint.directory, checkpoint.dtype, checkpoint.layers
        self.activations, self.describe = checkpoint.activations, checkpoint.describe
        self.cache_without_scales = checkpoint.cache_without_scales

    def tensors(self) -> Iterator[Any]:
        return self._checkpoint.tensors()


def test_readers_that_know_no_names(unified: Unified) -> None:
    source = InOrder(octavo.plugins().exporter("unified_hf").open(unified("INT8")))
    converted = ConvertedCheckpoint(source, survey(source), TensorRtLlmDialect())

    message = "tensors of .*unified are read in their order only, .* has no method `tensor`. Convert it to unified_hf"
    with pytest.raises(UnsupportedError, match=message):
        converted.tensor("model.norm.weight")
