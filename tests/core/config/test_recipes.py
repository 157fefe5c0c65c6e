"""Recipes: a config in YAML that may include presets and other recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo.core.config import load_config, load_recipe, merge_configs, preset

OURS = "quant_cfg:\n  - {quantizer_name: '*down_proj*', enable: false}\n"
ENTRY = {"quantizer_name": "*down_proj*", "enable": False}


def written(folder: Path, **files: str) -> Path:
    """Write each file as `<name>.yaml` and return the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


def test_presets_come_first_and_our_entries_after(tmp_path: Path) -> None:
    path = written(tmp_path, recipe="include: [NVFP4_DEFAULT_CFG, FP8_KV_CFG]\n" + OURS)
    expected = merge_configs("NVFP4_DEFAULT_CFG", "FP8_KV_CFG", {"quant_cfg": [ENTRY], "algorithm": None})

    assert load_recipe(path) == load_recipe(str(path)) == expected


def test_a_recipe_is_a_config(tmp_path: Path) -> None:
    text = """
    quant_cfg:
      - {quantizer_name: "*", enable: false}
      - quantizer_name: "*weight_quantizer"
        parent_class: nn.Linear
        cfg: {num_bits: [2, 1], block_sizes: {-1: 16, type: dynamic, scale_bits: [4, 3]}}
    algorithm: {method: max}
    """
    config = load_recipe(written(tmp_path, recipe=text))

    assert config["algorithm"] == {"method": "max"}
    assert config["quant_cfg"][1]["cfg"]["block_sizes"] == {-1: 16, "type": "dynamic", "scale_bits": [4, 3]}
    assert load_config(config) == config


def test_included_files_are_found_beside_the_file_that_includes_them(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    written(tmp_path / "parts", outer="include: [inner.yaml]\n", inner="include: [INT8_DEFAULT_CFG]\n")
    path = written(tmp_path, recipe="include: [parts/outer.yaml]\n" + OURS)

    assert load_recipe(path)["quant_cfg"] == [*preset("INT8_DEFAULT_CFG")["quant_cfg"], ENTRY]


def test_the_same_file_may_be_included_twice(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        top="include: [left.yaml, right.yaml]\n",
        left="include: [base.yml]\n",
        right="include: [base.yml]\n",
    )
    (tmp_path / "base.yml").write_text(OURS)

    assert load_recipe(path)["quant_cfg"] == [ENTRY, ENTRY]


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        ("include: [INT8_DEFAULT_CFG]\n", "max"),
        ("include: [INT8_DEFAULT_CFG]\nalgorithm: null\n", None),
        ("include: [INT4_AWQ_CFG]\nalgorithm: max\n", "max"),
        ("include: [MXFP8_DEFAULT_CFG]\n", None),
        ("include: [MXFP8_DEFAULT_CFG, FP8_DEFAULT_CFG]\n", "max"),
        ("include: [MXFP8_DEFAULT_CFG]\nalgorithm: max\n" + OURS, "max"),
        ("include: [INT4_AWQ_CFG]\n" + OURS, {"method": "awq_lite", "alpha_step": 0.1}),
        (OURS, "max"),
    ],
)
def test_the_recipes_own_algorithm_wins(tmp_path: Path, text: str, algorithm: Any) -> None:
    assert load_recipe(written(tmp_path, recipe=text))["algorithm"] == algorithm


def test_included_entries_without_an_algorithm_do_not_choose_one(tmp_path: Path) -> None:
    path = written(tmp_path, recipe="include: [MXFP8_DEFAULT_CFG, ours.yaml]\n", ours=OURS)

    assert load_recipe(path)["algorithm"] is None
    assert load_recipe(written(tmp_path, outer="include: [ours.yaml]\n"))["algorithm"] == "max"


def test_the_older_form_stands_alone(tmp_path: Path) -> None:
    text = "quant_cfg: {'*weight_quantizer': {num_bits: 8, enable: true}, default: {enable: false}}\nalgorithm: max\n"

    assert list(load_recipe(written(tmp_path, recipe=text))["quant_cfg"]) == ["*weight_quantizer", "default"]
