"""Whether the ranks that serve a model can share its layers without cutting a block or a head."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.plan_models import new_model, planned, shared_model
from octavo.core.config import with_block_size
from octavo.core.errors import OctavoError

INT4_32 = with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(
    "config", ["FP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG", INT4_32], ids=["fp8", "nvfp4", "int4"]
)
def test_sizes_that_fit(config: Any, tp: int) -> None:
    """Two key/value heads are split over 2 ranks and replicated to 4."""
    assert planned(config, tp=tp).errors == ()


def test_heads() -> None:
    assert planned("FP8_DEFAULT_CFG", tp=8).errors == ("4 attention heads cannot be split over tp=8",)
    three = new_model(
        device="meta", num_attention_heads=6, num_key_value_heads=3, head_dim=32, hidden_size=192
    )
    assert planned("FP8_DEFAULT_CFG", three, tp=2).errors == (
        "3 key/value heads can be neither split over nor replicated to tp=2",
    )


def test_blocks_along_the_dim_that_row_parallel_layers_split() -> None:
    model = new_model(device="meta", intermediate_size=96)
    errors = planned(INT4_32, model, tp=2).errors

    assert errors == tuple(
        f"model.layers.{i}.mlp.down_proj: in_features 96 cannot be split over tp=2 in whole blocks of 32"
        for i in (0, 1)
    )
    assert planned("FP8_DEFAULT_CFG", model, tp=2).errors == ()


def test_square_blocks_along_the_dim_that_column_parallel_layers_split() -> None:
    errors = planned("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", tp=2).errors
    found = {error.partition(":")[0]: error.partition(": ")[2] for error in errors if ".0." in error}

    assert found == {
        **{
            f"model.layers.0.self_attn.{letter}_proj": (
                f"out_features {size} cannot be split over tp=2 in whole blocks of 128"
            )
            for letter, size in (("q", 128), ("k", 64), ("v", 64))
        },
        "model.layers.0.self_attn.o_proj": "in_features 128 cannot be split over tp=2 in whole blocks of 128",
    }


def test_widths_that_do_not_split_at_all() -> None:
    errors = planned("FP8_DEFAULT_CFG", new_model(device="meta", intermediate_size=255), tp=2).errors

    assert [error for error in errors if ".0." in error] == [
        "model.layers.0.mlp.gate_proj: out_features 255 cannot be split over tp=2 in whole blocks of 1",
        "model.layers.0.mlp.up_proj: out_features 255 cannot be split over tp=2 in whole blocks of 1",
        "model.layers.0.mlp.down_proj: in_features 255 cannot be split over tp=2 in whole blocks of 1",
    ]


def test_replicated_heads_are_cut_no_further() -> None:
    """Each of 2 key/value heads has 32 rows, whole blocks of 32; a quarter of them would not be."""
    config = {
        "quant_cfg": [
            {
                "quantizer_name": "*self_attn.[kvo]_proj.weight_quantizer",
                "cfg": {"num_bits": 8, "block_sizes": {-1: 16, -2: 32}},
            }
        ]
    }

    assert planned(config, tp=4).errors == ()
    errors = planned(config, new_model(device="meta", head_dim=16), tp=4).errors
    assert errors[0] == (
        "model.layers.0.self_attn.k_proj: out_features 32 cannot be split over 2 key/value heads, which tp=4 "
        "replicates, in whole blocks of 32"
    )


def test_layers_that_are_left_out_are_not_checked() -> None:
    model = new_model(device="meta", intermediate_size=255)
    config = {"quant_cfg": [{"quantizer_name": "*self_attn.*weight_quantizer", "cfg": {"num_bits": 8}}]}

    assert planned(config, model, tp=2).errors == ()


def test_a_family_without_a_map_cannot_be_checked() -> None:
    model = shared_model("exaone4")

    assert planned("FP8_DEFAULT_CFG", model, tp=2).errors == (
        "tp=2 cannot be checked: no family map says how this model is split",
    )
    assert planned("FP8_DEFAULT_CFG", model).errors == ()


@pytest.mark.parametrize("tp", [0, -2])
def test_a_size_below_one(tp: int) -> None:
    with pytest.raises(OctavoError, match=str(tp)):
        planned("FP8_DEFAULT_CFG", tp=tp).check()


def test_each_segment_of_a_fused_layer_is_divided() -> None:
    """Phi-3's 128 rows of q are split over 4 ranks, the 64 of k and of v over their 2 heads, and replicated."""
    assert planned("FP8_DEFAULT_CFG", new_model("phi3", "meta"), tp=4).errors == ()
    model = new_model("phi3", "meta", intermediate_size=254)
    found = [error for error in planned("FP8_DEFAULT_CFG", model, tp=4).errors if "gate_up" in error]

    assert found[:2] == [
        f"model.layers.0.mlp.gate_up_proj: the 254 rows of mlp.{part}, of 508 in all, cannot be split over tp=4 in "
        "whole blocks of 1"
        for part in ("gate", "up")
    ]


def test_square_blocks_that_would_hold_rows_of_two_segments() -> None:
    """256 rows of q, k and v are 2 blocks of 128 and 512 of gate and up are 4, but not of what a rank holds."""
    errors = planned("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", new_model("phi3", "meta"), tp=2).errors
    kv = "of 256 in all, cannot be split over tp=2 in whole blocks of 128 (a rank's lie 32 together)"

    assert [error.partition(": ")[2] for error in errors if "layers.0.self_attn.qkv_proj" in error] == [
        "the 128 rows of attention.q, of 256 in all, cannot be split over tp=2 in whole blocks of 128 (a rank's lie "
        "64 together)",
        f"the 64 rows of attention.k, {kv}",
        f"the 64 rows of attention.v, {kv}",
    ]
    assert not [error for error in errors if "gate_up" in error], "128 rows of each on each rank"


def test_rows_of_heads_that_take_turns() -> None:
    """GPT-NeoX's 256 rows of q are 128 on each of 2 ranks, in runs of a head's 64."""
    model = new_model("gpt_neox", "meta", hidden_size=256)
    errors = planned("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", model, tp=2).errors

    assert errors[0] == (
        "gpt_neox.layers.0.attention.query_key_value: the 256 rows of attention.q, of 768 in all, cannot be split over "
        "tp=2 in whole blocks of 128 (a rank's lie 64 together)"
    )
    wide = new_model("gpt_neox", "meta", hidden_size=512)
    assert planned("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", wide, tp=2).errors == ()


def test_one_key_of_all_heads_is_replicated() -> None:
    config = {"quant_cfg": [{"quantizer_name": "*c_attn.weight_quantizer", "cfg": {"num_bits": 8}}]}
    model = new_model("gpt_bigcode", "meta", hidden_size=96, num_attention_heads=6)

    assert planned(config, model, tp=3).errors == ()
    assert planned(config, model, tp=4).errors[0] == "6 attention heads cannot be split over tp=4"
