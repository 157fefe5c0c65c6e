"""Recipes that cannot be read: file and reason, and no code of theirs is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from octavo.core.config import load_recipe
from octavo.core.errors import ConfigError


def refused(folder: Path, text: str | bytes, name: str = "recipe.yaml") -> str:
    """Return the message with which a recipe of this text is refused."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quant_cfg: [", "is not valid YAML: while parsing a flow"),
        ("quant_cfg:\n  - {quantizer_name: *weight_quantizer}\n", "is not valid YAML: .*undefined alias"),
        ("- INT8_DEFAULT_CFG\n", "must be a mapping, found list"),
        ("", "must be a mapping, found NoneType"),
        ("algorithm: max\n", "has neither 'include' nor 'quant_cfg'"),
        ("include: []\n", "has neither 'include' nor 'quant_cfg'"),
        ("includes: [INT8_DEFAULT_CFG]\n", "unknown key 'includes'; known: include, .*Did you mean 'include'"),
        ("include: [INT8_DEFUALT_CFG]\n", "unknown preset 'INT8_DEFUALT_CFG'.*Did you mean 'INT8_DEFAULT_CFG'"),
        ("include: [7]\n", "include lists preset names and .yaml files, found 7"),
        ("include: [FP8_KV_CFG]\nquant_cfg: {default: {enable: false}}\n", "an ordered list of entries can be joined"),
    ],
)  # fmt: skip
def test_text(tmp_path: Path, text: str, message: str) -> None:
    assert re.search(message, refused(tmp_path, text), re.DOTALL)


def test_the_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "recipe.yaml") in refused(tmp_path, "quant_cfg: [")
    assert str(tmp_path / "recipe.yaml") in refused(tmp_path, "quantcfg: []")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"recipe {tmp_path / 'gone.yaml'} does not exist"):
        load_recipe(tmp_path / "gone.yaml")
    assert f"recipe {tmp_path / 'parts' / 'gone.yaml'} does not exist" in refused(
        tmp_path, "include: [parts/gone.yaml]"
    )


def test_a_recipe_that_includes_itself(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"

    assert refused(tmp_path, "include: [recipe.yaml]\n") == f"recipe {path} includes itself, through {path}"


def test_a_circle_of_recipes(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("include: [c.yaml]\n")
    (tmp_path / "c.yaml").write_text("include: [./a.yaml]\n")
    a, b, c = (tmp_path / f"{name}.yaml" for name in "abc")

    assert (
        refused(tmp_path, "include: [b.yaml]\n", "a.yaml")
        == f"recipe {a} includes itself, through {a} -> {b} -> {c}"
    )


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"]
)
def test_tags_are_not_executed(tmp_path: Path, tag: str) -> None:
    proof = tmp_path / "executed"

    assert "could not determine a constructor for the tag" in refused(
        tmp_path, f"quant_cfg: {tag} ['touch {proof}']\n"
    )
    assert not proof.exists()


def test_include_that_is_one_name(tmp_path: Path) -> None:
    assert "unknown preset 'I'" not in refused(tmp_path, "include: INT8_DEFAULT_CFG\n")


@pytest.mark.parametrize("value", ["", " 7"])
def test_include_that_is_no_list(tmp_path: Path, value: str) -> None:
    assert "include" in refused(tmp_path, f"include:{value}\n")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    assert "recipe.yaml" in refused(tmp_path, b"quant_cfg: \xff\xfe")
