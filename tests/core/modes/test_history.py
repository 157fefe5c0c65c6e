"""The history: what was done to a model, in order, as data."""

from __future__ import annotations

import copy
import json

import pytest
from torch import nn

import octavo
from helpers.calibration_models import quantizer_config, rows, two_layers
from octavo.core.errors import ModeError
from octavo.core.modes import ModeRecord, applying, last_record, mode_named, set_history

FIRST, SECOND = ModeRecord("quantize", 1, {"n": 1}, {}), ModeRecord("quantize", 1, {"n": 2}, {})


def test_a_plain_model_has_none() -> None:
    assert octavo.history(two_layers()) == ()
    assert last_record(two_layers(), "quantize") is None


def test_quantizing_records_mode_version_config_and_state() -> None:
    config = quantizer_config(weight_quantizer={"num_bits": (4, 3), "axis": None})
    before = copy.deepcopy(config)

    (record,) = octavo.history(octavo.quantize(two_layers(), config, [rows()], quiet=True))

    assert (record.mode, record.version) == ("quantize", 1)
    assert record.config == json.loads(json.dumps(before))
    assert record.state["layers"].keys() == {"0", "1"}
    assert record.state["layers"]["0"]["attention"] is False
    (weight,) = record.state["layers"]["1"]["quantizers"]["weight_quantizer"]
    assert (weight["spec"]["element"], weight["enabled"], weight["range_mask"]) == ("e4m3", True, True)
    assert record.state["layers"]["1"]["quantizers"]["input_quantizer"] == []


def test_a_record_is_json_and_holds_no_reference_to_the_users_config() -> None:
    config = octavo.preset("FP8_DEFAULT_CFG")
    model = octavo.quantize(two_layers(), config, [rows()], quiet=True)

    config["quant_cfg"].clear()

    (record,) = octavo.history(model)
    assert json.loads(json.dumps(record.to_json())) == record.to_json()
    assert len(record.config["quant_cfg"]) > 2


def test_the_newest_record_of_a_mode_is_the_last() -> None:
    model = two_layers()
    set_history(model, (FIRST, SECOND))

    assert last_record(model, "quantize") is SECOND
    assert last_record(model, "distill") is None
    assert octavo.history(model) == (FIRST, SECOND)


def test_an_empty_history_leaves_no_trace() -> None:
    model = two_layers()
    attributes = set(vars(model))
    set_history(model, (FIRST,))
    set_history(model, ())
    set_history(model, ())

    assert set(vars(model)) == attributes


def test_a_copied_model_has_a_history_of_its_own() -> None:
    model = octavo.quantize(two_layers(), "INT8_WEIGHT_ONLY_CFG", quiet=True)
    duplicate = copy.deepcopy(model)

    octavo.unquantize(duplicate)

    assert len(octavo.history(model)) == 1
    assert octavo.history(duplicate) == ()
    assert [type(layer) for layer in duplicate] == [nn.Linear, nn.Linear]


def test_a_mode_is_recorded_with_the_state_that_was_filled_in() -> None:
    model = two_layers()
    set_history(model, (FIRST,))

    with applying(model, "quantize", {"n": 2}) as state:
        assert octavo.history(model) == (FIRST,), "not before it is done"
        state["layers"] = {}

    assert octavo.history(model) == (FIRST, ModeRecord("quantize", 1, {"n": 2}, {"layers": {}}))


def test_a_mode_that_fails_is_not_recorded() -> None:
    model = two_layers()
    set_history(model, (FIRST,))

    with pytest.raises(KeyboardInterrupt), applying(model, "quantize", {}):
        raise KeyboardInterrupt

    assert octavo.history(model) == (FIRST,)


def test_an_unknown_mode_is_refused_with_the_nearest() -> None:
    message = r"^unknown mode 'quantise'; known: quantize, fold_weight, distill, compress. Did you mean 'quantize'\?$"

    with pytest.raises(ModeError, match=message):
        mode_named("quantise")
    with pytest.raises(ModeError, match=message), applying(two_layers(), "quantise", {}):
        pass
