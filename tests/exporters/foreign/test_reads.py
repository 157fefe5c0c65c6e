"""Checkpoints of AutoAWQ and GPTQ are read as the values that their published layouts stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from helpers.exporters_models import MLP, same, tokens
from helpers.integer_checkpoints import awq, gptq, written
from octavo.core.evaluation.read_back import exporter_of
from octavo.core.formats import PerBlock, PerChannel, QuantSpec
from octavo.core.packed import PackedAffine, PackedTensor

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "AWQ": (awq(), {}),
    "AWQ symmetric": (awq(zero_point=False), {"symmetric": True}),
    "AWQ channels": (awq(group_size=-1), {"group": -1}),
    "GPTQ 2": (gptq(2), {}),
    "GPTQ 3": (gptq(3), {}),
    "GPTQ 4": (gptq(4), {}),
    "GPTQ 8": (gptq(8), {}),
    "GPTQ version 1": (gptq(4, checkpoint_format="gptq"), {"version": 1}),
    "GPTQ version 1 without its name": (gptq(4, checkpoint_format=None), {"version": 1}),
    "GPTQ symmetric": (gptq(4, sym=True, checkpoint_format="gptq"), {"version": 1, "symmetric": True}),
    "GPTQ channels": (gptq(4, group_size=-1), {"group": -1}),
    "GPTQ in order": (gptq(4, desc_act=True), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_values(case: str, tmp_path: Path) -> None:
    config, options = CASES[case]
    expected = written(tmp_path / "in", config, **options)

    checkpoint = exporter_of(tmp_path / "in").open(tmp_path / "in")

    kind = PackedTensor if options.get("symmetric") else PackedAffine
    found = {name: value for name, value in checkpoint.tensors() if isinstance(value, kind)}
    assert found.keys() == expected.keys()
    assert [name for name in expected if not same(found[name].dequantize(), expected[name])] == []
    assert (checkpoint.activations(), checkpoint.cache_without_scales()) == ({}, {})


def test_layers_say_their_format(tmp_path: Path) -> None:
    written(tmp_path / "awq", awq())
    written(tmp_path / "gptq", gptq(8, group_size=-1, sym=True), group=-1, symmetric=True)

    asymmetric = exporter_of(tmp_path / "awq").open(tmp_path / "awq").layers[MLP]
    symmetric = exporter_of(tmp_path / "gptq").open(tmp_path / "gptq").layers[MLP]

    blocks = PerBlock(((-1, 32),))
    assert asymmetric.weight == QuantSpec("uint4", blocks, arithmetic="divide")
    assert asymmetric.zero_points
    assert symmetric.weight == QuantSpec("int8", PerChannel(0), arithmetic="divide")
    assert not symmetric.zero_points


def test_the_model_computes_with_them(tmp_path: Path) -> None:
    expected = written(tmp_path / "in", gptq())

    model = octavo.load_quantized(tmp_path / "in")

    assert same(model.get_parameter(f"{MLP}.weight").detach(), expected[f"{MLP}.weight"])
    with torch.no_grad():
        assert model(tokens()).logits.isfinite().all()


def test_what_inspect_shows(tmp_path: Path) -> None:
    written(tmp_path / "in", awq())

    shown = exporter_of(tmp_path / "in").open(tmp_path / "in").describe()

    assert shown == {
        "dialect": "awq",
        "weights": "uint4 block{-1:32}",
        "zero_points": True,
        "layers": 14,
        "num_tensors": 14 * 3 + 7,
        "dtype": "float16",
    }
