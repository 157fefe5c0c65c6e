"""What the writer takes from a model, and that it reads its files back before the folder appears."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from helpers.exporters_models import export, json_of, quantized, tensors_of
from octavo.core.errors import CheckpointError, ExportError
from octavo.core.evaluation.read_back import fill_model
from octavo.core.model.blocks import Block, InMemoryBlocks
from octavo.exporters.unified_hf import source_spelling
from octavo.exporters.unified_hf.exporter import EXPORTER


class TwoNames(nn.Module):
    """One layer called `a` and `b`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.b(self.a(x))
        return output


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.input_layernorm.weight"])
def test_a_tensor_that_is_not_finite_is_refused_by_name(name: str, value: float, tmp_path: Path) -> None:
    model = quantized("INT8_WEIGHT_ONLY_CFG")
    model.get_parameter(name).data.view(-1)[0] = value

    with pytest.raises(
        ExportError, match=rf"^{re.escape(name)} has NaN or infinite values as torch.float32, "
    ):
        export(model, tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_is_too_narrow_is_refused(tmp_path: Path) -> None:
    model = quantized("INT8_WEIGHT_ONLY_CFG")
    model.get_parameter("model.norm.weight").data[0] = 1e6

    with pytest.raises(ExportError, match=r"^model\.norm\.weight has .* torch\.float16, .*a larger range$"):
        export(model, tmp_path / "out", dtype=torch.float16)


def test_a_layer_with_two_names_is_written_once_and_read_back_under_both(tmp_path: Path) -> None:
    x = torch.ones(2, 32)
    model = octavo.quantize(TwoNames(), "FP8_DEFAULT_CFG", [x], quiet=True)
    directory = export(model, tmp_path / "out")

    names = {"a.bias", "a.input_scale", "a.weight", "a.weight_scale"}
    assert tensors_of(directory).keys() == names
    read = fill_model(TwoNames(), EXPORTER.open(directory))
    with octavo.finalized(model, "unified_hf"):
        assert torch.equal(read(x), model(x))


def test_a_plain_module_has_its_dtype_in_the_config(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(32, 32)).to(torch.bfloat16)
    octavo.quantize(plain, "INT8_WEIGHT_ONLY_CFG", quiet=True)
    directory = export(plain, tmp_path / "out")

    assert json_of(directory / "config.json")["dtype"] == "bfloat16"
    assert EXPORTER.open(directory).dtype == torch.bfloat16
    assert dict(EXPORTER.open(directory).tensors())["0.weight"].dequantize().dtype == torch.bfloat16  # type: ignore[union-attr]


def test_metadata_that_does_not_read_back_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized("INT8_WEIGHT_ONLY_CFG")
    monkeypatch.setattr(
        source_spelling, "nested_metadata", lambda *_: {"quantization": {"quant_algo": "none such"}}
    )

    with pytest.raises(CheckpointError, match="none such"):
        export(model, tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


def test_values_are_those_of_the_module_that_the_source_hands_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def elsewhere(self: InMemoryBlocks, block: Block) -> Iterator[nn.Module]:
        """Hand out a copy, as a source whose model has no values would; a norm tells it from the model."""
        module = copy.deepcopy(block.module)
        for name, parameter in module.named_parameters():
            if name.endswith("norm.weight"):
                parameter.data.fill_(7.0)
        yield module

    monkeypatch.setattr(InMemoryBlocks, "materialized", elsewhere)
    tensors = tensors_of(export(quantized("INT8_WEIGHT_ONLY_CFG"), tmp_path / "out"))

    norms = [tensor for name, tensor in tensors.items() if name.endswith("norm.weight")]
    assert len(norms) == 2 * 2 + 1
    assert all((norm == 7.0).all() for norm in norms)
