"""What presets say of queries, keys and values: ../shared/specs/modelopt.md, 1.1."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.config_presets import FP8, NVFP4, blocks, layer
from helpers.config_rules import decided, is_on
from octavo.core.config import preset

AFFINE = {"bias": {-2: None, -4: None, "type": "static"}}
# name: (attributes of q or None for off, of k, of v, algorithm)
CACHES: dict[str, tuple[Any, Any, Any, Any]] = {
    "FP8_KV_CFG": (None, FP8, FP8, None),
    "NVFP4_KV_CFG": (None, NVFP4, NVFP4, None),
    "FP8_AFFINE_KV_CFG": (None, {**FP8, **AFFINE}, {**FP8, **AFFINE}, None),
    "NVFP4_AFFINE_KV_CFG": (None, *2 * [{**blocks((2, 1), 16, (4, 3)), **AFFINE}], None),
    "NVFP4_KV_ROTATE_CFG": (None, {**blocks((2, 1), 16, (4, 3)), "rotate": True}, NVFP4, "max"),
    "NVFP4_FP8_MHA_CONFIG": (FP8, FP8, FP8, "max"),
}


@pytest.mark.parametrize("name", CACHES)
def test_attention(name: str) -> None:
    *expected, algorithm = CACHES[name]
    rules = preset(name)["quant_cfg"]

    assert preset(name)["algorithm"] == algorithm
    for letter, attributes in zip("qkv", expected, strict=True):
        quantizer = layer(f"self_attn.{letter}_bmm_quantizer")
        assert is_on(rules, quantizer) == (attributes is not None)
        if attributes is not None:
            assert decided(rules, quantizer) == [attributes]


@pytest.mark.parametrize("name", CACHES)
def test_what_comes_out_of_the_softmax_and_of_the_second_product(name: str) -> None:
    rules, is_mha = preset(name)["quant_cfg"], name == "NVFP4_FP8_MHA_CONFIG"

    assert is_on(rules, layer("self_attn.p_bmm_quantizer")) == is_mha
    assert not is_on(rules, layer("self_attn.bmm2_output_quantizer")), "the peer does so in image models only"
    assert is_on(rules, "transformer_blocks.0.attn.bmm2_output_quantizer") == is_mha


def test_the_rotated_cache_keeps_rotating_queries_that_stay_unquantized() -> None:
    query = layer("self_attn.q_bmm_quantizer")

    assert decided(preset("NVFP4_KV_ROTATE_CFG")["quant_cfg"], query) == [{"enable": False, "rotate": True}]
