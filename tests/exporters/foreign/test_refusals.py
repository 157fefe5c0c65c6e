"""What of AutoAWQ's and GPTQ's checkpoints is refused, and that nothing is written in their layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from helpers.exporters_models import MLP, quantized, with_json, with_tensors
from helpers.integer_checkpoints import awq, gptq, written
from octavo.core.errors import CheckpointError, ExportError
from octavo.core.evaluation.read_back import exporter_of

Change = Callable[[dict[str, Tensor]], object]

METADATA: dict[str, dict[str, Any]] = {
    "AWQ checkpoints of version 'gemm' with 4 bits are read, found version 'gemv' with 4 bits": awq(version="GEMV"),
    "AWQ checkpoints of version 'gemm' with 4 bits are read, found version 'gemm' with 8 bits": awq(bits=8),
    "group_size must be a positive number or -1, found 0": awq(group_size=0),
    "group_size must be a positive number or -1, found None": gptq(group_size=None),
    "GPTQ checkpoints of format gptq or gptq_v2 with 2, 3, 4, 8 bits are read, found format 'marlin' with 4 bits": (
        gptq(checkpoint_format="marlin")
    ),
    "found format 'gptq_v2' with 5 bits": gptq(5),
    r"GPTQ checkpoints of one format are read, found others for \['\+:.\*down.\*'\]": (
        gptq(dynamic={"-:.*lm_head.*": {}, "+:.*down.*": {"bits": 8}})
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", METADATA)
def test_metadata(message: str, tmp_path: Path) -> None:
    config = METADATA[message]
    written(tmp_path / "in", {**config, "bits": 4})
    with_json(tmp_path / "in" / "config.json", lambda data: data.update(quantization_config=config))
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(tmp_path / "in")


def replaced(part: str, change: Callable[[Tensor], Tensor]) -> Change:
    name = f"{MLP}.{part}"
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


TENSORS: dict[str, tuple[dict[str, Any], Change]] = {
    rf"lacks {MLP}\.scales: a layer in AWQ's layout has qweight, qzeros, scales": (
        awq(), lambda tensors: tensors.pop(f"{MLP}.scales"),
    ),
    rf"lacks {MLP}\.qzeros: a layer in GPTQ's layout": (gptq(), lambda tensors: tensors.pop(f"{MLP}.qzeros")),
    rf"lacks {MLP}\.qweight": (gptq(), lambda tensors: tensors.pop(f"{MLP}.qweight")),
    rf"{MLP}\.g_idx must give groups of 32 neighbouring inputs, found g_idx \[7, 7, 7, 7\] …: a checkpoint in "
    r"activation order \(desc_act\)": (gptq(desc_act=True), replaced("g_idx", lambda g: g.flip(0))),
    rf"{MLP}\.g_idx must give groups of 32 neighbouring inputs, found no g_idx": (
        gptq(desc_act=True), lambda tensors: tensors.pop(f"{MLP}.g_idx"),
    ),
    rf"{MLP}\.qzeros: config.json says that the codes are symmetric, whose zero point is 8; found 9": (
        gptq(sym=True, checkpoint_format="gptq"), lambda _: None,
    ),
    rf"{MLP}\.scales must be for 8 groups of 128 output channels, found \(7, 128\)": (
        awq(), replaced("scales", lambda scale: scale[:-1]),
    ),
    rf"{MLP}\.scales must be positive numbers": (awq(), replaced("scales", lambda scale: scale * torch.nan)),
    rf"{MLP}\.qweight must be a matrix of torch.int32 .* found torch.int64 \(256, 16\)": (
        awq(), replaced("qweight", lambda words: words.long()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", TENSORS)
def test_tensors(message: str, tmp_path: Path) -> None:
    config, change = TENSORS[message]
    # Zero points of 8 as version 2 stores them, which version 1 would read as 9.
    written(tmp_path / "in", config, symmetric=True)
    with_tensors(tmp_path / "in", change)
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(tmp_path / "in")


def test_a_checkpoint_without_quantized_layers(tmp_path: Path) -> None:
    written(tmp_path / "in", awq())
    parts = (".qweight", ".qzeros", ".scales")
    with_tensors(
        tmp_path / "in", lambda tensors: [tensors.pop(n) for n in list(tensors) if n.endswith(parts)]
    )
    with pytest.raises(CheckpointError, match="no quantized layer: no tensor is called qweight"):
        exporter_of(tmp_path / "in").open(tmp_path / "in")


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_nothing_is_written(name: str, tmp_path: Path) -> None:
    exporter, model = octavo.plugins().exporter(name), quantized("INT8_WEIGHT_ONLY_CFG")

    with pytest.raises(
        ExportError, match=f"{name} checkpoints are read, not written; octavo.export_hf_checkpoint"
    ):
        exporter.export(model, tmp_path / "out")
    with pytest.raises(ExportError, match=f"{name} checkpoints are read, not written"):
        octavo.finalize(model, name)
    assert not (tmp_path / "out").exists()


def test_asymmetric_weights_have_no_place_in_symmetric_dialects(tmp_path: Path) -> None:
    written(tmp_path / "in", awq())
    layer = exporter_of(tmp_path / "in").open(tmp_path / "in").layers[MLP]

    verdict = octavo.plugins().exporter("unified_hf").serves("vllm", layer)

    assert (verdict.status, verdict.evidence) == (
        "refused",
        "the unified HF dialect cannot store this format",
    )
