"""Rules of a layer's tensors: the little language of shapes, and what each kind of value must be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.core.verification.finding import Finding
from octavo.core.verification.layer_rules import check_layer, layer_rules
from octavo.core.verification.stored_files import StoredFiles
from octavo.core.verification.stored_values import Values, wrong_values

SIZES = {"out": 6, "in": 32, "group": 16, "bits": 3}


def found(folder: Path, tensor: Tensor | None, row: dict[str, object]) -> list[Finding]:
    (folder / "config.json").write_text("{}")
    save_file(
        {"a.x": torch.ones(1), **({} if tensor is None else {"a.t": tensor})},
        folder / "model.safetensors",
    )
    return list(check_layer(StoredFiles(folder), "a", layer_rules({"t": row}), SIZES))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["out", "in"], (6, 32)),
        (["out", "in/2"], (6, 16)),
        (["out//4", 1, "in/group", 1], (2, 1, 2, 1)),
        (["out", "in*bits//32"], (6, 3)),
        ([2], (2,)),
    ],
)
def test_shapes(tmp_path: Path, shape: list[object], expected: tuple[int, ...]) -> None:
    row = {"dtype": "F32", "shape": shape}

    assert found(tmp_path, torch.ones(expected), row) == []
    (finding,) = found(tmp_path, torch.ones(*expected, 1), row)
    assert (finding.found, finding.expected) == (f"F32 {[*expected, 1]}", f"F32 {list(expected)}")


def test_one_number(tmp_path: Path) -> None:
    row = {"dtype": ["F32", "BF16"], "shape": "scalar", "values": "number"}

    assert found(tmp_path, torch.ones(()), row) == found(tmp_path, torch.ones(1).bfloat16(), row) == []
    assert found(tmp_path, torch.ones(1, 1), row)[0].expected == "F32 or BF16 [] or [1]"
    assert found(tmp_path, torch.zeros(1), row)[0].found == "1 of 1 values that are 0"


def test_sizes_that_do_not_divide(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, torch.ones(1), {"dtype": "F32", "shape": ["out/4"]})

    assert finding.found == "a layer with 6 features, no multiple of 4"


def test_what_is_missing(tmp_path: Path) -> None:
    assert found(tmp_path, None, {"dtype": "F32", "shape": ["out"], "optional": True}) == []
    (finding,) = found(tmp_path, None, {"dtype": "F32", "shape": ["out"]})
    assert (finding.place, finding.found, finding.expected) == ("a.t", "no such tensor", "F32 [out]")


def test_scales_of_blocks_without_values_are_warned_of(tmp_path: Path) -> None:
    row = {"dtype": "F32", "shape": ["in/group"], "values": "scales"}

    (finding,) = found(tmp_path, torch.tensor([0.0, 1.0]), row)
    assert (finding.severity, finding.found) == ("warning", "1 scales that are 0")


@pytest.mark.parametrize(
    ("values", "tensor", "expected"),
    [
        ("any", torch.tensor([float("nan")]), ""),
        ("finite", torch.tensor([1.0, float("inf")]).bfloat16(), "1 of 2 values that are NaN or infinite"),
        ("finite", torch.tensor([1, 2]), ""),
        (
            "codes",
            torch.tensor([0x7F, 0xFF, 0x7E], dtype=torch.uint8).view(torch.float8_e4m3fn),
            "2 of 3 values that ",
        ),
        ("scales", torch.tensor([0.0, -1.0]), "1 of 2 values below 0"),
        ("signed_scales", torch.tensor([-1.0, 0.0]), "1 of 2 values that are 0"),
        ("exponents", torch.tensor([0, 255], dtype=torch.uint8), "1 of 2 values that stand for NaN"),
    ],
)
def test_values(values: Values, tensor: Tensor, expected: str) -> None:
    wrong = wrong_values(tensor, values)

    assert wrong.startswith(expected)
    assert bool(wrong) == bool(expected)
