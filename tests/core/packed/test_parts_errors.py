"""Parts that are missing, of another shape, dtype or format are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.packed_specs import NVFP4, some_tensor, state_of
from octavo.core.errors import CheckpointError, ConfigError
from octavo.core.packed import PackedTensor

Parts = tuple[dict[str, Tensor], dict[str, Any]]


@pytest.fixture
def parts() -> Parts:
    x = some_tensor()
    return PackedTensor.pack(x, state_of(x, NVFP4), NVFP4).to_parts()


@pytest.mark.parametrize("lost", [["payload"], ["scale"], ["global_scale"], ["payload", "scale"]])
def test_missing_parts_are_named(parts: Parts, lost: list[str]) -> None:
    tensors, description = parts
    kept = {name: tensor for name, tensor in tensors.items() if name not in lost}

    message = rf"^packed tensor e2m1 block{{-1:16}} e4m3·global dynamic of shape \(32, 64\) lacks {', '.join(lost)}$"
    with pytest.raises(CheckpointError, match=message):
        PackedTensor.from_parts(kept, description)


@pytest.mark.parametrize(
    ("part", "wrong", "right", "found"),
    [
        ("payload", (32, 31), r"\(32, 32\)", r"\(32, 31\)"),
        ("payload", (16, 32), r"\(32, 32\)", r"\(16, 32\)"),
        ("scale", (32, 5), r"\(32, 4\)", r"\(32, 5\)"),
        ("scale", (128,), r"\(32, 4\)", r"\(128,\)"),
    ],
)
def test_a_part_of_another_shape_is_refused_with_both_shapes(
    parts: Parts, part: str, wrong: tuple[int, ...], right: str, found: str
) -> None:
    tensors, description = parts
    changed = torch.zeros(wrong, dtype=tensors[part].dtype)

    message = rf"^{part} of a tensor \(32, 64\) packed as e2m1 .* has shape {right}, found {found}$"
    with pytest.raises(CheckpointError, match=message):
        PackedTensor.from_parts({**tensors, part: changed}, description)


def test_a_description_of_another_shape_is_refused(parts: Parts) -> None:
    tensors, description = parts

    with pytest.raises(
        CheckpointError, match=r"payload of a tensor \(32, 80\).* shape \(32, 40\), found \(32, 32\)"
    ):
        PackedTensor.from_parts(tensors, {**description, "shape": [32, 80]})


def test_an_unknown_format_is_refused_by_its_name(parts: Parts) -> None:
    tensors, description = parts

    with pytest.raises(ConfigError, match=r"^unknown element type 'e9m9'"):
        PackedTensor.from_parts(tensors, {**description, "spec": {**NVFP4.to_json(), "element": "e9m9"}})


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("global_scale", torch.ones(32, 1)),
        ("payload", torch.zeros(32, 32)),
        ("payload", torch.zeros(32, 32, dtype=torch.int8)),
        ("scale", torch.zeros(32, 4, dtype=torch.uint8)),
        ("scale", torch.ones(32, 4)),
    ],
    ids=["global_scale shape", "payload float", "payload int8", "scale uint8", "scale float32"],
)
def test_a_part_that_would_be_read_as_other_values_is_refused(
    parts: Parts, part: str, changed: Tensor
) -> None:
    tensors, description = parts

    with pytest.raises(CheckpointError, match=part):
        PackedTensor.from_parts({**tensors, part: changed}, description)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spec": None}, "spec"),
        ({"shape": None}, "shape"),
        ({"dtype": None}, "dtype"),
        ({"dtype": "bfloat61"}, "bfloat61"),
        ({"dtype": "nn"}, "nn"),
        ({"shape": []}, "shape"),
    ],
    ids=str,
)
def test_a_damaged_description_is_refused_by_what_is_wrong(
    parts: Parts, change: dict[str, Any], named: str
) -> None:
    tensors, description = parts
    damaged = {key: value for key, value in {**description, **change}.items() if value is not None}

    with pytest.raises(CheckpointError, match=named):
        PackedTensor.from_parts(tensors, damaged)
