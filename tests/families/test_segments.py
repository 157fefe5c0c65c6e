"""Each fused layer of a family map: its declared segments are what the model reads as q, k and v, or gate and up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.family_cases import FamilyCase, family_cases
from octavo.core.model.description import ModelDescription
from octavo.core.model.segments import RowSegments
from octavo.core.plugins import plugins

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
CASES = family_cases()
VARIANTS = {
    "StarCoder with all heads": ("StarCoder", {"multi_query": False}, "gpt_bigcode_heads"),
    "Falcon with all heads": ("Falcon 7B", {"multi_query": False}, "falcon_heads"),
    "Falcon 40B with one group": ("Falcon 40B", {"num_kv_heads": 1}, "falcon_40b"),
    "Phi 3 with wide heads": ("Phi 3, 4", {"head_dim": 32}, "phi3"),
}
CASES |= {
    name: FamilyCase(name, {**CASES[base].config, **changes}, family)
    for name, (base, changes, family) in VARIANTS.items()
}
DECLARED = {
    "Phi 3, 4": {"attention.qkv": (64, 32, 32), "mlp.gate_up": (128, 128)},
    "Phi 3 with wide heads": {"attention.qkv": (128, 64, 64), "mlp.gate_up": (128, 128)},
    "GLM-4": {"mlp.gate_up": (128, 128)},
    "GLM-4-0414": {"mlp.gate_up": (128, 128)},
    "GPT-2": {"attention.qkv": (64, 64, 64)},
    "StarCoder": {"attention.qkv": (64, 16, 16)},
    "StarCoder with all heads": {"attention.qkv": (64, 64, 64)},
    "GPT-NeoX, Pythia": {"attention.qkv": (64, 64, 64)},
    "Bloom": {"attention.qkv": (64, 64, 64)},
    "Falcon 7B": {"attention.qkv": (64, 16, 16)},
    "Falcon with all heads": {"attention.qkv": (64, 64, 64)},
    "Falcon 40B": {"attention.qkv": (64, 32, 32)},
    "Falcon 40B with one group": {"attention.qkv": (64, 16, 16)},
    "MPT": {"attention.qkv": (64, 64, 64)},
}


@pytest.mark.parametrize("name", CASES)
def test_every_fused_layer_is_declared_with_these_rows(name: str) -> None:
    description = described(CASES[name].model())
    found = {
        role: tuple(map(segments.num_rows, segments.rows_per_group))
        for role, segments in first_block(description).items()
    }

    assert found == DECLARED.get(name, {})
    assert description is None or description.family == CASES[name].map


@pytest.mark.parametrize(
    ("name", "role"), [(name, role) for name, roles in DECLARED.items() for role in roles]
)
def test_a_declaration_is_what_the_model_computes_and_no_other_is(name: str, role: str) -> None:
    model, batch = CASES[name].model(), CASES[name].batch()
    description = described(model)
    assert description is not None
    is_true = is_true_of_attention if role == "attention.qkv" else is_true_of_mlp
    segments = first_block(description)[role]
    reordered = dict(reversed(segments.rows_per_group.items()))
    others = [replace(segments, rows_per_group=reordered)]
    if role == "attention.qkv":
        others += [regrouped(segments, groups) for groups in (1, 2, 4) if groups != segments.groups]

    assert is_true(model, batch, description, segments)
    assert not any(is_true(model, batch, description, other) for other in others)


def is_true_of_attention(
    model: nn.Module, batch: Mapping[str, Tensor], description: ModelDescription, segments: RowSegments
) -> bool:
    """What reaches the output projection follows v in proportion, and the product of q and k.

    Of the first token, only k and v matter to the others, and nobody's q to what it reads itself.
    """

    def run(**factors: float) -> Tensor:
        return read_by(model, batch, description, "attention.out", segments, scaled("attention", factors))

    def first(role: str) -> Tensor:
        return read_by(model, batch, description, "attention.out", segments, first_token(f"attention.{role}"))

    plain = run()
    return (
        torch.equal(run(q=2, k=0.5, v=2), 2 * plain)
        and torch.equal(first("q"), plain)
        and not torch.equal(first("k"), plain)
    )


def is_true_of_mlp(
    model: nn.Module, batch: Mapping[str, Tensor], description: ModelDescription, segments: RowSegments
) -> bool:
    """What reaches the down projection follows up in proportion; the gate goes through a curve."""

    def run(**factors: float) -> Tensor:
        return read_by(model, batch, description, "mlp.down", segments, scaled("mlp", factors))

    return torch.equal(run(up=2), 2 * run()) and not torch.equal(run(gate=2), 2 * run())


def scaled(prefix: str, factors: Mapping[str, float]) -> Change:
    return lambda parts: {
        role: part * factors.get(role.removeprefix(f"{prefix}."), 1) for role, part in parts.items()
    }


def first_token(changed: str) -> Change:
    def change(parts: dict[str, Tensor]) -> dict[str, Tensor]:
        part = parts[changed].clone()
        part[:, 0] = part[:, 0].flip(-1) + 1
        return {**parts, changed: part}

    return change


@torch.no_grad()
def read_by(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    description: ModelDescription,
    reader: str,
    segments: RowSegments,
    change: Change,
) -> Tensor:
    """Return the input of `reader` in the first block, where the split projections, changed, replace the fused."""
    roles = description.blocks[0].roles
    fused = roles["attention.qkv" if reader == "attention.out" else "mlp.gate_up"]
    inputs: list[Tensor] = []
    capture = model.get_submodule(roles[reader]).register_forward_pre_hook(
        lambda _, args: inputs.append(args[0].clone())
    )
    with capture, projected(model.get_submodule(fused), segments, change):
        model(**batch)
    return inputs[0]


@contextmanager
def projected(layer: nn.Module, segments: RowSegments, change: Change) -> Iterator[None]:
    """Let `layer` compute each segment by itself, from its part of the weight and of the bias."""
    typed: Any = layer
    weights = segments.split(typed.weight, segments.weight_dim)
    no_bias = torch.zeros(segments.total_rows)
    biases = segments.split(no_bias if typed.bias is None else typed.bias)

    def replaced(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = {role: w.t() if segments.weight_dim else w for role, w in weights.items()}
        parts = {role: functional.linear(args[0], rows[role], biases[role]) for role in rows}
        torch.testing.assert_close(segments.join(parts, dim=-1), output)
        return segments.join(change(parts), dim=-1)

    with layer.register_forward_hook(replaced):
        yield


def regrouped(segments: RowSegments, groups: int) -> RowSegments:
    rows = {role: segments.num_rows(role) // groups for role in segments.rows_per_group}
    return replace(segments, rows_per_group=rows, groups=groups)


def described(model: nn.Module) -> ModelDescription | None:
    return plugins().describe_model(model)


def first_block(description: ModelDescription | None) -> dict[str, RowSegments]:
    if description is None:
        return {}
    roles = description.blocks[0].roles
    return {role: description.segments[name] for role, name in roles.items() if name in description.segments}
