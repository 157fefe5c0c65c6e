"""Schemes by name, as a checkpoint calls them."""

from __future__ import annotations

import pytest

from helpers.exporters_formats import INPUTS
from octavo.core.errors import CheckpointError
from octavo.exporters.unified_hf.schemes import scheme_named


def test_names_are_found_in_any_case() -> None:
    assert scheme_named("FP8_PB_WO", False, "x").quant_algo == "fp8_pb_wo"
    assert scheme_named("nvfp4", True, "x").quant_algo == "NVFP4"


@pytest.mark.parametrize("static", [True, False])
def test_an_input_scale_tells_two_schemes_of_one_name_apart(static: bool) -> None:
    scheme = scheme_named("W4A8_MXFP4_FP8", static, "x")

    assert scheme.inputs == INPUTS["fp8" if static else "fp8 dynamic"]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        CheckpointError, match=r"^here: unknown quant_algo 'NVFP5'; known: .*Did you mean 'NVFP4'\?$"
    ):
        scheme_named("NVFP5", True, "here")
