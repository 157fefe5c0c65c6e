"""Which scales finalizing shares: those that an engine keeps once for layers with one input, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.tiny import tiny_llama, token_batches
from octavo.core.formats import QuantSpec
from octavo.core.modules import quantized_layers

NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
GROUPS = [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")]
ALONE = ["self_attn.o_proj", "mlp.down_proj"]


def model_with_distinct_weights(**changes: Any) -> nn.Module:
    """Every layer has another maximum, so that sharing shows."""
    model = tiny_llama(**changes)
    with torch.no_grad():
        for index, layer in enumerate(m for m in model.modules() if isinstance(m, nn.Linear)):
            layer.weight.mul_(1 + index / 7)
    return model


def weight_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    found = {
        layer_name.removeprefix("model."): getattr(layer.quantizers()["weight_quantizer"], name).clone()
        for layer_name, layer in quantized_layers(model)
        if hasattr(layer.quantizers().get("weight_quantizer"), name)
    }
    assert len(found) >= 14
    return found


def test_second_level_scales_are_the_maximum_of_each_group_within_its_block() -> None:
    model = octavo.quantize(model_with_distinct_weights(), "NVFP4_DEFAULT_CFG", token_batches(1), quiet=True)
    own = weight_state(model, "global_amax")

    octavo.finalize(model, "unified_hf")

    shared = weight_state(model, "global_amax")
    for block in ("layers.0", "layers.1"):
        for group in GROUPS:
            expected = max(own[f"{block}.{name}"] for name in group)
            assert {float(shared[f"{block}.{name}"]) for name in group} == {float(expected)}
        for name in ALONE:
            assert torch.equal(shared[f"{block}.{name}"], own[f"{block}.{name}"])
    assert len({float(value) for value in own.values()}) == len(own), "all were distinct before"


@pytest.mark.parametrize("preset", ["FP8_DEFAULT_CFG", "INT8_DEFAULT_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"])
def test_first_level_scales_of_weights_stay_their_own(preset: str) -> None:
    config = octavo.preset(preset)
    if "INT4" in preset:
        config = octavo.with_block_size(config, 32)
    model = octavo.quantize(model_with_distinct_weights(), config, token_batches(1), quiet=True)
    own = weight_state(model, "amax")

    octavo.finalize(model, "unified_hf")

    shared = weight_state(model, "amax")
    assert [name for name in own if not torch.equal(own[name], shared[name])] == []


def test_square_blocks_are_shared_only_where_every_weight_is_a_single_one() -> None:
    config = "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"
    model = octavo.quantize(model_with_distinct_weights(), config, quiet=True)
    own = weight_state(model, "amax")

    octavo.finalize(model, "unified_hf")

    # q is 128×128 and k, v are 64×128: one block each; gate and up are 256×128: two.
    shared = weight_state(model, "amax")
    changed = {name for name in own if not torch.equal(own[name], shared[name])}
    assert changed == {f"layers.{i}.self_attn.{letter}_proj" for i in (0, 1) for letter in "qk"}
    assert torch.equal(shared["layers.0.self_attn.q_proj"], own["layers.0.self_attn.v_proj"])


def test_layers_of_another_format_are_left_out_with_their_group() -> None:
    config = octavo.merge_configs("NVFP4_DEFAULT_CFG")
    config["quant_cfg"].append({"quantizer_name": "*v_proj.weight_quantizer", "cfg": {"num_bits": (4, 3)}})
    model = octavo.quantize(model_with_distinct_weights(), config, token_batches(1), quiet=True)
    before = {name: float(layer.weight_quantizer.global_amax) for name, layer in _nvfp4_layers(model)}  # type: ignore[union-attr, arg-type]

    octavo.finalize(model, "unified_hf")

    after = {name: float(layer.weight_quantizer.global_amax) for name, layer in _nvfp4_layers(model)}  # type: ignore[union-attr, arg-type]
    changed = {name.rpartition(".")[2] for name in before if before[name] != after[name]}
    assert changed == {"gate_proj"}, "up has the larger maximum of its group; q and k are not shared"


def _nvfp4_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, la) for n, la in quantized_layers(model) if hasattr(la.weight_quantizer, "global_amax")]


def test_a_group_without_an_excluded_layer_is_still_a_group() -> None:
    config = octavo.merge_configs("NVFP4_DEFAULT_CFG")
    config["quant_cfg"].append({"quantizer_name": "*v_proj*", "enable": False})
    model = octavo.quantize(model_with_distinct_weights(), config, token_batches(1), quiet=True)

    octavo.finalize(model, "unified_hf")

    q, k = (model.get_submodule(f"model.layers.0.self_attn.{x}_proj") for x in "qk")
    assert torch.equal(q.weight_quantizer.global_amax, k.weight_quantizer.global_amax)  # type: ignore[union-attr, arg-type]


class Recorder:
    """A dialect that changes nothing and notes what it is asked."""

    name = "recorder"

    def __init__(self) -> None:
        self.groups_asked: list[list[tuple[int, ...]]] = []
        self.activations: list[str] = []

    def weight_spec(self, weight: QuantSpec, inputs: QuantSpec | None) -> QuantSpec:
        return weight

    def weight_state(
        self, spec: QuantSpec, state: dict[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        return state

    def shared_state(self, weights: Sequence[QuantSpec], shapes: Sequence[Sequence[int]]) -> tuple[str, ...]:
        self.groups_asked.append([tuple(shape) for shape in shapes])
        return ()

    def has_place_for(self, layer: nn.Module, quantizer: str) -> bool:
        return True

    def activation_state(
        self, quantizer: str, spec: QuantSpec, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        self.activations.append(quantizer)
        return state


def test_any_dialect_is_asked_once_for_each_group_and_each_static_activation() -> None:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
    model = octavo.quantize(model_with_distinct_weights(), config, token_batches(1), quiet=True)
    dialect = Recorder()

    octavo.finalize(model, dialect)

    attention, feed_forward = [(128, 128), (64, 128), (64, 128)], [(256, 128), (256, 128)]
    assert sorted(map(sorted, dialect.groups_asked)) == sorted(map(sorted, [attention, feed_forward] * 2))
    assert sorted(dialect.activations) == (
        ["input_quantizer"] * 14 + ["k_bmm_quantizer"] * 2 + ["v_bmm_quantizer"] * 2
    )


class ChoosyRecorder(Recorder):
    """The same, and joins the queries' and keys' layers alone."""

    def groups(self, model: nn.Module, groups: object) -> list[tuple[str, ...]]:
        return [tuple(f"model.layers.0.self_attn.{letter}_proj" for letter in "qk")]


def test_a_dialect_may_choose_which_layers_share() -> None:
    model = octavo.quantize(model_with_distinct_weights(), "FP8_DEFAULT_CFG", token_batches(1), quiet=True)
    dialect = ChoosyRecorder()

    octavo.finalize(model, dialect)

    assert dialect.groups_asked == [[(128, 128), (64, 128)]]
