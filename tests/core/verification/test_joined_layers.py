"""Layers that engines join, and what one scale for all of them costs."""

from __future__ import annotations

import torch

from octavo.core.verification.joined_layers import joined_layers, requantization_error


def test_groups_are_found_by_name() -> None:
    found = joined_layers(
        [
            *(f"l.0.attn.{x}_proj" for x in "qkvo"),
            "l.0.mlp.gate_proj",
            "l.0.mlp.up_proj",
            "l.1.experts.7.w1",
            "l.1.experts.7.w3",
            "l.2.mlp.up_proj",  # alone: not a gated layer
        ]
    )

    assert {group.name: group.parts for group in found} == {
        "l.0.attn.qkv_proj": ("l.0.attn.q_proj", "l.0.attn.k_proj", "l.0.attn.v_proj"),
        "l.0.mlp.gate_up_proj": ("l.0.mlp.gate_proj", "l.0.mlp.up_proj"),
        "l.1.experts.7.w13": ("l.1.experts.7.w1", "l.1.experts.7.w3"),
    }


def test_the_second_rounding() -> None:
    codes = torch.tensor([448.0, 1.0, -240.0]).to(torch.float8_e4m3fn)
    # 298.67 is rounded in steps of 32, 0.6667 in steps of 1/16; 160 is a code.
    rounded = torch.tensor([288.0, 0.6875, -160.0])

    values = codes.float() * 2
    expected = float((rounded * 3 - values).norm() / values.norm())
    assert requantization_error(codes, 2.0, 3.0) == expected
    assert requantization_error(codes, 2.0, 4.0) == 0  # a power of two
