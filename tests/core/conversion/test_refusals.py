"""What is not converted, and what is said of it; nothing is written then."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import octavo
from helpers.adapters_models import tiny_model, tokens
from helpers.cli_runner import MODEL
from helpers.conversions import INT4, Unified, exported
from helpers.exporters_models import MLP, export, json_of, with_json, with_tensors
from helpers.integer_checkpoints import awq, gptq, written
from octavo.core.errors import CheckpointError, ConfigError, ExportError, PluginError


def refused(kind: type[Exception], message: str, source: Path, out: Path, **options: Any) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(kind, match=message):
        octavo.convert_checkpoint(source, out, quiet=True, **options)
    assert sorted(out.parent.iterdir()) == before


def test_where_to(unified: Unified, tmp_path: Path) -> None:
    source, out = unified("INT8"), tmp_path / "out"

    known = r"give a dialect .*\(--to: compressed_tensors, tensorrt_llm, unified_hf\), or the engine"
    refused(ConfigError, known, source, out)
    unknown = r"no exporter 'compresed_tensors'; known: .* Did you mean 'compressed_tensors'\?"
    refused(PluginError, unknown, source, out, dialect="compresed_tensors")
    refused(ConfigError, r"unknown target 'vlm'; .* Did you mean 'vllm'\?", source, out, target="vlm")
    already = f"{re.escape(str(source))} is in the dialect unified_hf already; give another one, or a target"
    refused(ConfigError, already, source, out, dialect="unified_hf")
    known = "max_shard_bytes is a whole number, at least 1; found 0"
    refused(ExportError, known, source, out, dialect="compressed_tensors", max_shard_bytes=0)


def test_what_the_engine_refuses_in_this_dialect(unified: Unified, tmp_path: Path) -> None:
    message = (
        r"vllm and weights int8 channel0, inputs int8 tensor: refused \(tried: .*layers model\.layers\.0"
    )

    refused(ExportError, message, unified("INT8"), tmp_path / "out", dialect="unified_hf", target="vllm")


@pytest.mark.parametrize("inside", [".", "new", "..", "../.."])
def test_folders_in_each_other(inside: str, unified: Unified) -> None:
    source = unified("INT8")
    out = source / inside

    message = f"{re.escape(str(out))} and {re.escape(str(source))} are one folder, or one is in the other"
    with pytest.raises(ConfigError, match=message):
        octavo.convert_checkpoint(source, out, dialect="compressed_tensors", overwrite=True)
    assert (source / "model.safetensors").is_file()


def test_a_folder_that_is_in_use(unified: Unified, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ExportError, match=r"is not empty; give another folder, or overwrite=True"):
        octavo.convert_checkpoint(unified("INT8"), tmp_path, dialect="compressed_tensors")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_is_not_quantized(tmp_path: Path) -> None:
    message = r"stories260k is no quantized checkpoint of a known format"
    refused(CheckpointError, message, MODEL, tmp_path / "out", dialect="unified_hf")
    missing = r"nowhere does not exist; give the folder of a quantized checkpoint"
    refused(CheckpointError, missing, tmp_path / "nowhere", tmp_path / "out", dialect="unified_hf")


def test_a_checkpoint_that_says_it_is_quantized_and_is_not(tmp_path: Path) -> None:
    config = {"dtype": "float32", "quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "model" / "model.safetensors")

    message = "model has nothing to convert: no layer of it is quantized, nor its cache"
    refused(CheckpointError, message, tmp_path / "model", tmp_path / "out", dialect="compressed_tensors")


@pytest.mark.parametrize("missing", ["weight_scale", "input_scale"])
def test_missing_scales(missing: str, tmp_path: Path) -> None:
    source = with_tensors(
        exported("INT8_DEFAULT_CFG", tmp_path / "unified"), lambda tensors: tensors.pop(f"{MLP}.{missing}")
    )

    message = re.escape(f"{MLP}.{missing}") + ("" if missing == "input_scale" else ", which goes with it")
    refused(CheckpointError, message, source, tmp_path / "out", dialect="compressed_tensors")


@pytest.mark.parametrize("config", [awq(), gptq()], ids=["AWQ", "GPTQ"])
@pytest.mark.parametrize(
    "where", [{"dialect": "compressed_tensors"}, {"dialect": "unified_hf"}, {"target": "vllm"}]
)
def test_zero_points_have_no_place_in_symmetric_dialects(
    config: dict[str, Any], where: dict[str, str], tmp_path: Path
) -> None:
    written(tmp_path / "in", config)

    message = r"in has codes with zero points, .* not written: model\.layers\.0\.mlp\.down_proj, .*14 in all"
    refused(ExportError, message, tmp_path / "in", tmp_path / "out", **where)


@pytest.mark.parametrize("missing", ["scales", "qzeros"])
def test_what_is_missing_in_a_source_of_others_is_named(missing: str, tmp_path: Path) -> None:
    written(tmp_path / "in", awq())
    source = with_tensors(tmp_path / "in", lambda tensors: tensors.pop(f"{MLP}.{missing}"))

    message = f"{re.escape(MLP)}.*{missing}"
    refused(CheckpointError, message, source, tmp_path / "out", dialect="unified_hf")


def test_a_shard_outside_the_folder(tmp_path: Path) -> None:
    source = exported("INT8_WEIGHT_ONLY_CFG", tmp_path / "unified", max_shard_bytes=100_000)
    (index,) = source.glob("*.index.json")
    first = next(iter(json_of(index)["weight_map"]))
    with_json(index, lambda data: data["weight_map"].update({first: "../other.safetensors"}))

    message = re.escape(f"tensor {first!r} is said to be in '../other.safetensors', outside the folder")
    refused(CheckpointError, message, source, tmp_path / "out", dialect="compressed_tensors")


def test_formats_that_the_dialect_does_not_have(tmp_path: Path) -> None:
    source = exported("MXFP6_DEFAULT_CFG", tmp_path / "unified")

    message = r"weights e3m2 block\{-1:32\} e8m0 dynamic, inputs e3m2 .*: model\.layers\.0\.mlp\.down_proj, .*14 in all"
    refused(ExportError, message, source, tmp_path / "out", dialect="compressed_tensors")


def test_formats_that_modelopts_dialect_does_not_have(tmp_path: Path) -> None:
    source = exported(INT4, tmp_path / "ct", target="vllm")
    group = "quantization_config", "config_groups", "group_0", "weights"

    def per_channel(config: dict[str, Any]) -> None:
        for key in group:
            config = config[key]
        config.update(strategy="channel", group_size=None)

    with_json(source / "config.json", per_channel)
    with_tensors(source, _keep_first_scales)

    message = r"14 layers have formats that .* cannot store: weights int4 channel0, inputs None: model.*It stores FP8, "
    refused(ExportError, message, source, tmp_path / "out", dialect="unified_hf")


def _keep_first_scales(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        tensors[name] = tensors[name][:, :1].contiguous()


def test_experts_in_one_tensor(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = octavo.quantize(tiny_model("gpt_oss", **sizes), "FP8_DEFAULT_CFG", [tokens()], quiet=True)
    octavo.disable_quantizer(model, "*self_attn*")
    source = export(model, tmp_path / "unified")

    message = r"experts\.down_proj holds experts in one tensor, for which compressed-tensors has no form"
    refused(ExportError, message, source, tmp_path / "out", dialect="compressed_tensors", lossy=True)

    report = octavo.convert_checkpoint(
        source, tmp_path / "out", target="vllm", dialect="unified_hf", quiet=True
    )
    assert report.changes == ()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        source / "model.safetensors"
    ).read_bytes()
