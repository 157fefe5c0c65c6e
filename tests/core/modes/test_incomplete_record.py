"""A record that is JSON and lacks a part, or says what this model cannot do, is refused by that part."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import octavo
from helpers.calibration_snapshot import snapshot
from helpers.modes_saved import edit_record, plain, quantized
from octavo.core.errors import ModeError

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modes") / "saved"
    octavo.save(quantized(), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "saved"))


def refused(folder: Path, message: str, error: type[Exception]) -> None:
    """Restoring fails with `message`, and the plain model is as it was."""
    model = plain()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        octavo.restore(model, folder)
    assert snapshot(model) == before


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no modes": (lambda r: r.pop("modes"), "modes"),
    "no aliases": (lambda r: r.pop("aliases"), "aliases"),
    "a mode without config": (lambda r: r["modes"][0].pop("config"), "config"),
    "a mode that is a string": (lambda r: r.update(modes=["quantize"]), "quantize"),
    "a state without layers": (lambda r: r["modes"][0]["state"].pop("layers"), "layers"),
    "an alias of nothing": (
        lambda r: r["aliases"].update({"lm_head.weight": "nothing.weight"}),
        "nothing.weight",
    ),
    "a quantizer less": (lambda r: quantizers(r).pop("input_quantizer"), "input_quantizer"),
    "a quantizer more": (lambda r: quantizers(r).update(surplus_quantizer=[]), "surplus_quantizer"),
    "a stage without a format": (lambda r: quantizers(r)["input_quantizer"][0].pop("spec"), "spec"),
}


def quantizers(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["modes"][0]["state"]["layers"][LAYER]["quantizers"]
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_with_a_part_missing_is_refused_by_the_part(folder: Path, damage: str) -> None:
    change, named = DAMAGES[damage]
    edit_record(folder, change)

    refused(folder, named, octavo.OctavoError)


def test_a_format_that_does_not_exist_is_refused_by_its_name(folder: Path) -> None:
    edit_record(folder, lambda r: quantizers(r)["input_quantizer"][0]["spec"].update(element="e9m9"))

    refused(folder, "^unknown element type 'e9m9'", octavo.OctavoError)


def test_a_layer_that_the_model_does_not_have_is_refused_by_name(folder: Path) -> None:
    layers = "model.layers.9.mlp.up_proj"
    edit_record(
        folder,
        lambda r: r["modes"][0]["state"]["layers"].update({layers: {"attention": False, "quantizers": {}}}),
    )

    refused(
        folder, f"^the record has a quantized layer '{layers}'; this LlamaForCausalLM has none$", ModeError
    )


def test_a_layer_whose_class_cannot_be_quantized_is_refused_by_name(folder: Path) -> None:
    described = {"model.norm": {"attention": False, "quantizers": {}}}
    edit_record(folder, lambda r: r["modes"][0]["state"]["layers"].update(described))

    refused(
        folder, "^model.norm: LlamaRMSNorm has no quantized class; register one first$", octavo.OctavoError
    )
