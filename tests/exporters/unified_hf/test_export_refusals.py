"""Models and folders that cannot be exported: what is in the way, by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

import octavo
from helpers.exporters_models import MLP, SIZES, digests, export, plain_model, quantized, tokens
from octavo.core.errors import ExportError, ModeError, OctavoError
from octavo.core.formats import QuantSpec
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect

FP8 = {"num_bits": (4, 3)}
INT4 = {"num_bits": 4, "block_sizes": {-1: 64}}
E5M2 = {"num_bits": (5, 2)}


def rules(**cfg_by_glob: Any) -> dict[str, Any]:
    """Return a config of rules for the MLP's quantizers."""
    quant_cfg = [
        {"quantizer_name": f"*down_proj.{kind}_quantizer", "cfg": cfg} for kind, cfg in cfg_by_glob.items()
    ]
    return {"quant_cfg": quant_cfg, "algorithm": "max"}


def test_a_plain_model(tmp_path: Path) -> None:
    with pytest.raises(ModeError, match=r"^the model is not quantized; call octavo\.quantize first$"):
        export(plain_model(), tmp_path / "out")


def test_no_folder() -> None:
    with pytest.raises(
        ExportError, match=r"^export_dir is missing: give the folder to write the checkpoint to$"
    ):
        octavo.export_hf_checkpoint(quantized("INT8_WEIGHT_ONLY_CFG"), quiet=True)


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    before = digests(tmp_path)

    with pytest.raises(ExportError, match=rf"^{tmp_path} is not empty; .*overwrite=True \(--overwrite\)$"):
        export(quantized("INT8_WEIGHT_ONLY_CFG"), tmp_path)
    with pytest.raises(
        ExportError, match=rf"^{tmp_path} has no octavo_.*; found notes.txt\. Give another folder"
    ):
        export(quantized("INT8_WEIGHT_ONLY_CFG"), tmp_path, overwrite=True)
    assert digests(tmp_path) == before


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")

    with pytest.raises(ExportError, match=f"^{tmp_path / 'out'} is a file; give a folder$"):
        export(quantized("INT8_WEIGHT_ONLY_CFG"), tmp_path / "out", overwrite=True)


def test_quantizers_that_were_never_calibrated_are_named(tmp_path: Path) -> None:
    model = quantized("FP8_DEFAULT_CFG")
    for name in ("input_quantizer", "weight_quantizer"):
        model.get_submodule(f"{MLP}.{name}").calibrated.zero_()

    message = f"2 quantizers were never calibrated: {MLP}.input_quantizer, {MLP}.weight_quantizer; run octavo.calibrate"
    with pytest.raises(ExportError, match=f"^{re.escape(message)}"):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "format"),
    [
        (rules(weight=[INT4, FP8]), "int4"),
        (rules(weight=E5M2), "e5m2"),
        (rules(weight=FP8), "e4m3"),
        (rules(input=FP8), "input_quantizer"),
        (rules(weight={"num_bits": 8}), "int8"),
    ],
    ids=["sequential", "unknown element", "fp8 weights alone", "inputs alone", "int8 per tensor"],
)
def test_layouts_without_a_scheme_are_refused_with_their_layers(
    config: dict[str, Any], format: str, tmp_path: Path
) -> None:
    model = quantized(config)

    with pytest.raises(ExportError) as caught:
        export(model, tmp_path / "out")

    message = str(caught.value)
    assert message.startswith(
        "2 layers have formats that this dialect cannot store: model.layers.0.mlp.down_proj ("
    )
    assert "model.layers.1.mlp.down_proj (" in message
    assert format in message
    assert "It stores FP8, FP8_PER_CHANNEL_PER_TOKEN, fp8_pb_wo, " in message


def test_refused_formats_are_called_by_their_short_names(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"int4 block\{-1:64\} then e4m3 tensor"):
        export(quantized(rules(weight=[INT4, FP8])), tmp_path / "out")


def test_a_model_finalized_for_another_dialect(tmp_path: Path) -> None:
    class OtherDialect(UnifiedHfDialect):
        name = "other"

        def weight_spec(self, weight: QuantSpec, inputs: QuantSpec | None) -> QuantSpec:
            return weight

    model = quantized("FP8_DEFAULT_CFG")
    octavo.finalize(model, OtherDialect())

    with pytest.raises(
        ExportError, match=r"^the model is finalized for other; call octavo\.unfinalize\(model\) first$"
    ):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_read_back_has_nothing_to_pack(tmp_path: Path) -> None:
    served = octavo.load_quantized(export(quantized("INT8_WEIGHT_ONLY_CFG"), tmp_path / "first"))

    with pytest.raises(
        ExportError, match=f"^the model was read from {tmp_path / 'first'} and its weights are deq"
    ):
        export(served, tmp_path / "second")


def test_a_model_without_a_quantizer_that_is_on(tmp_path: Path) -> None:
    model = quantized("INT8_WEIGHT_ONLY_CFG")
    for name, module in model.named_modules():
        if name.endswith("weight_quantizer"):
            module.enabled = False

    with pytest.raises(ExportError, match="no quantizer is on"):
        export(model, tmp_path / "out")


def test_a_dtype_that_is_no_float(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"a float one; found torch\.int8$"):
        export(quantized("INT8_WEIGHT_ONLY_CFG"), tmp_path / "out", dtype=torch.int8)


def test_an_odd_number_of_int4_rows_is_refused(tmp_path: Path) -> None:
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=3)).eval()
    octavo.quantize(model, octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 64), quiet=True)

    with pytest.raises(ExportError, match=r"score.*3"):
        export(model, tmp_path / "out")


def test_a_generation_config_that_transformers_does_not_save(tmp_path: Path) -> None:
    model = plain_model()
    model.generation_config.temperature = 0.6  # and do_sample is off, as in Llama 2's checkpoints
    octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", [tokens()], quiet=True)

    with pytest.raises(OctavoError, match="temperature"):
        export(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("layer", "kind"), [(nn.Conv2d(3, 4, 3), "Conv2d"), (nn.ConvTranspose1d(3, 4, 3), "ConvTranspose1d"),
    (nn.Embedding(4, 8), "Embedding")],
)  # fmt: skip
def test_layers_that_are_not_linear(layer: nn.Module, kind: str, tmp_path: Path) -> None:
    weights = {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}}
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(layer))
    octavo.quantize(model, {"quant_cfg": [weights], "algorithm": "max"}, quiet=True)
    message = (
        rf"^this dialect stores quantized linear layers only; found 1\.0 \({kind}\)\. Leave these layers out"
    )
    with pytest.raises(ExportError, match=message):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_was_tied_since(tmp_path: Path) -> None:
    model = quantized("INT8_WEIGHT_ONLY_CFG")
    first, second = (f"model.layers.{index}.mlp.up_proj" for index in range(2))
    model.get_submodule(first).weight = model.get_submodule(second).weight

    message = (
        rf"^{first}.weight is quantized, and was tied to {second}.weight since; a checkpoint would hold one"
    )
    with pytest.raises(ExportError, match=message):
        export(model, tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


def test_a_plain_side_that_was_tied_since(tmp_path: Path) -> None:
    model: Any = quantized("INT8_WEIGHT_ONLY_CFG")
    model.lm_head.weight = model.model.layers[
        0
    ].mlp.up_proj.weight  # of another shape: only the export is asked

    with pytest.raises(
        ExportError, match=r"^model.layers.0.mlp.up_proj.weight .* tied to lm_head.weight since"
    ):
        export(model, tmp_path / "out")
    octavo.disable_quantizer(model, "model.layers.0.mlp.up_proj.*")
    export(model, tmp_path / "out")
