"""`verify` over ModelOpt's files: what vLLM's own loading code takes is accepted, what it refuses is refused.

Which is which was seen by running that code over the same files.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import octavo
from helpers.exporters_models import export, json_of, quantized, with_json
from helpers.reference import BASES, PRESETS
from helpers.verification import DAMAGE, LAYER, copied, damaged, errors, places, warnings
from octavo.core.errors import CheckpointError, ConfigError

LOADED = {
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "FP8_DEFAULT_CFG", "FP8_DEFAULT_CFG+FP8_KV_CFG",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "MXFP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG", "NVFP4_DEFAULT_CFG+FP8_KV_CFG", "W4A16_NVFP4_CFG",
}  # fmt: skip
NOT_LOADED = {  # single blocks without dims, and experts that get one scale per tensor
    ("tied", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"),
    ("moe", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"),
    ("moe", "FP8_PER_CHANNEL_PER_TOKEN_CFG"),
}
SMOOTHED = ("INT4_AWQ_CFG", "INT8_SMOOTHQUANT_CFG", "W4A8_AWQ_BETA_CFG")


def reference(shared: Path, base: str, preset: str) -> Path:
    return shared / "reference" / "modelopt" / base / preset


@pytest.mark.parametrize("base", BASES)
def test_the_verdict_on_each_reference_is_vllms(shared: Path, base: str) -> None:
    existing = [p for p in (*PRESETS, *SMOOTHED) if reference(shared, base, p).is_dir()]
    accepted = {preset for preset in existing if not errors(reference(shared, base, preset))}

    assert accepted == {preset for preset in LOADED if (base, preset) not in NOT_LOADED}


@pytest.mark.parametrize("preset", ["NVFP4_DEFAULT_CFG", "FP8_DEFAULT_CFG"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(shared: Path, tmp_path: Path, preset: str, damage: str) -> None:
    change, suffix = DAMAGE[damage]
    found = errors(damaged(reference(shared, "dense", preset), tmp_path / "copy", change))

    assert f"{LAYER}.{suffix}" in places(found)
    assert all(f.place.startswith(LAYER) for f in found)


def test_a_renamed_tensor_is_found(shared: Path, tmp_path: Path) -> None:
    change, _ = DAMAGE["renamed"]
    found = errors(damaged(reference(shared, "dense", "FP8_DEFAULT_CFG"), tmp_path / "copy", change))

    assert {(f.place.removeprefix(LAYER), f.found) for f in found} == {
        (".weight_scale", f"no such tensor, but {LAYER}.weight_scales"),
        (".weight_scales", "F32 []"),
    }


def test_unequal_global_scales_are_refused_with_the_factor(shared: Path, tmp_path: Path) -> None:
    name = f"{LAYER}.weight_scale_2"
    folder = damaged(
        reference(shared, "dense", "NVFP4_DEFAULT_CFG"),
        tmp_path / "copy",
        lambda tensors: tensors.update({name: tensors[name] * 4}),
    )

    for consumer in ("vllm", "sglang", "trtllm"):
        (found,) = errors(folder, consumer)
        assert found.place == "model.layers.1.self_attn.qkv_proj.weight_scale_2"
        assert "q_proj is read 4 times as large, v_proj is read 4 times as large" in found.expected


def test_unequal_experts_are_refused(shared: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.2.up_proj.weight_scale_2"
    folder = damaged(
        reference(shared, "moe", "NVFP4_DEFAULT_CFG"),
        tmp_path / "copy",
        lambda tensors: tensors.update({name: tensors[name] * 2}),
    )

    (found,) = errors(folder)
    assert found.place == "model.layers.0.mlp.experts.2.gate_up_proj.weight_scale_2"


def test_one_scale_costs_what_a_second_rounding_does(shared: Path) -> None:
    found = warnings(reference(shared, "dense", "FP8_DEFAULT_CFG"))

    assert len(found) == 4
    assert {f.place.rpartition(".")[2] for f in found} == {"weight_scale"}
    assert "q_proj changes by 0.03" in next(f for f in found if "1.self_attn.qkv" in f.place).expected
    assert warnings(reference(shared, "dense", "NVFP4_DEFAULT_CFG")) == []


@pytest.mark.parametrize(
    "preset", ["FP8_DEFAULT_CFG", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "NVFP4_DEFAULT_CFG"]
)
def test_our_exports_for_vllm_have_no_findings(preset: str, tmp_path: Path) -> None:
    model = quantized(preset, torch.bfloat16, num_key_value_heads=4)

    assert octavo.verify_checkpoint(export(model, tmp_path / "out", target="vllm"), "vllm") == []


def test_transformers_would_compute_garbage(shared: Path) -> None:
    (found,) = octavo.verify_checkpoint(reference(shared, "dense", "FP8_DEFAULT_CFG"), "transformers")

    assert (found.severity, found.place) == ("error", "config.json: quant_method")
    assert "and loads codes without scales" in found.expected
    assert "octavo convert SRC DST --target transformers" in found.advice


def test_what_an_engine_does_not_know(shared: Path) -> None:
    (int8,) = errors(reference(shared, "dense", "INT8_DEFAULT_CFG"), "sglang")
    assert int8.found == "'W8A8_SQ_PER_CHANNEL'"
    (mxfp4,) = errors(reference(shared, "dense", "MXFP4_DEFAULT_CFG"), "trtllm")
    assert "no name in lower case" in mxfp4.expected
    (unknown,) = octavo.verify_checkpoint(reference(shared, "dense", "MXFP8_DEFAULT_CFG"), "trtllm")
    assert (unknown.severity, unknown.found) == ("warning", "'MXFP8'")


def excludes(folder: Path, change: object) -> Path:
    """Put other excluded modules into both descriptions."""
    with_json(folder / "config.json", lambda d: d["quantization_config"].update(ignore=change))
    with_json(folder / "hf_quant_config.json", lambda d: d["quantization"].update(exclude_modules=change))
    return folder


def test_excluded_names_match_too_much(shared: Path, tmp_path: Path) -> None:
    source = reference(shared, "dense", "FP8_DEFAULT_CFG")
    folder = excludes(
        copied(source, tmp_path / "copy"), ["lm_head", "model.embed_tokens", "model.layers.0.mlp.gate"]
    )

    found = errors(folder)
    assert places(found) == {f"model.layers.0.mlp.{word}_proj.weight" for word in ("gate", "up")}
    assert (
        "the excluded 'model.layers.0.mlp.gate' is part of the path 'model.layers.0.mlp.gate_up_proj'"
        in found[0].expected
    )
    assert errors(folder, "sglang") == []


def test_a_layer_that_nobody_excluded(shared: Path, tmp_path: Path) -> None:
    folder = excludes(copied(reference(shared, "dense", "FP8_DEFAULT_CFG"), tmp_path / "copy"), [])

    (found,) = errors(folder)
    assert (found.place, found.found) == ("lm_head.weight", "an unquantized weight (BF16)")
    assert found.advice == "List it among the excluded modules."


def test_half_of_a_joined_layer_excluded(shared: Path, tmp_path: Path) -> None:
    folder = copied(reference(shared, "dense", "FP8_DEFAULT_CFG"), tmp_path / "copy")
    excludes(folder, ["lm_head", "model.layers.1.self_attn.q_proj"])

    found = errors(folder)
    assert places(found) == {"model.layers.1.self_attn.qkv_proj", "model.layers.1.self_attn.q_proj.weight"}
    assert "k_proj, model.layers.1.self_attn.v_proj left out, or none" in found[0].expected


def test_a_router_that_nobody_excluded_is_a_warning(shared: Path, tmp_path: Path) -> None:
    folder = excludes(copied(reference(shared, "moe", "NVFP4_DEFAULT_CFG"), tmp_path / "copy"), ["lm_head"])

    assert errors(folder) == []
    assert places(warnings(folder)) == {f"model.layers.{i}.mlp.gate.weight" for i in (0, 1)}


def test_one_expert_excluded_stands_for_all(shared: Path, tmp_path: Path) -> None:
    folder = copied(reference(shared, "moe", "NVFP4_DEFAULT_CFG"), tmp_path / "copy")
    listed = json_of(folder / "hf_quant_config.json")["quantization"]["exclude_modules"]
    excludes(folder, [*listed, "model.layers.0.mlp.experts.3.down_proj"])

    assert len(errors(folder)) == 12
    assert "which stands for all experts of its layer" in errors(folder)[0].expected


def test_descriptions_that_differ(shared: Path, tmp_path: Path) -> None:
    folder = copied(reference(shared, "dense", "NVFP4_DEFAULT_CFG"), tmp_path / "copy")
    with_json(folder / "hf_quant_config.json", lambda d: d["quantization"].update(kv_cache_quant_algo="FP8"))

    (found,) = octavo.verify_checkpoint(folder, "vllm")
    assert (found.severity, found.found) == ("warning", "None and 'FP8'")
    assert found.place == "config.json and hf_quant_config.json: format of the cache"
    missing = octavo.verify_checkpoint(folder, "trtllm")  # which believes the other file
    assert len([f for f in missing if "Readers take 1" in f.advice]) == 4


METADATA_DAMAGE = {
    "quantization_config.quant_method": lambda d: d.update(quant_method="nvfp4"),
    "config_groups": lambda d: d["config_groups"]["group_0"].pop("input_activations"),
}


@pytest.mark.parametrize("field", METADATA_DAMAGE)
def test_fields_that_look_decorative(shared: Path, tmp_path: Path, field: str) -> None:
    folder = copied(reference(shared, "dense", "NVFP4_DEFAULT_CFG"), tmp_path / "copy")
    with_json(folder / "config.json", lambda d: METADATA_DAMAGE[field](d["quantization_config"]))

    (found,) = errors(folder)
    assert found.place.endswith(field)


def test_only_hf_quant_config(shared: Path, tmp_path: Path) -> None:
    for preset, refused in (("NVFP4_DEFAULT_CFG", False), ("MXFP8_DEFAULT_CFG", True)):
        folder = copied(reference(shared, "dense", preset), tmp_path / preset)
        with_json(folder / "config.json", lambda d: d.pop("quantization_config"))
        assert places(errors(folder)) == ({"config.json: quantization_config"} if refused else set())
    with_json(folder / "hf_quant_config.json", lambda d: d.pop("producer"))
    assert "hf_quant_config.json: producer.name" in places(errors(folder))


def test_a_cache_without_scales_and_scales_without_a_cache(shared: Path, tmp_path: Path) -> None:
    source = reference(shared, "dense", "FP8_DEFAULT_CFG+FP8_KV_CFG")
    scales = [f"model.layers.{i}.self_attn.{x}_proj.{x}_scale" for i in (0, 1) for x in "kv"]
    without = damaged(source, tmp_path / "without", lambda t: [t.pop(name) for name in scales])
    assert places([f for f in warnings(without) if "Readers take 1" in f.advice]) == set(scales)
    unread = copied(source, tmp_path / "unread")
    with_json(unread / "config.json", lambda d: d["quantization_config"].pop("kv_cache_scheme"))
    assert any(f.found == "scales of keys and values (4)" for f in warnings(unread))
    negative = damaged(source, tmp_path / "negative", lambda t: t.update({scales[0]: -t[scales[0]]}))
    assert places(errors(negative)) == {scales[0]}


def test_a_tied_head(shared: Path, tmp_path: Path) -> None:
    source = reference(shared, "tied", "NVFP4_DEFAULT_CFG")
    untied = copied(source, tmp_path / "untied")
    with_json(untied / "config.json", lambda d: d.update(tie_word_embeddings=False))
    (found,) = errors(untied)
    assert (found.place, found.found) == ("lm_head.weight", "no such tensor")
    other = damaged(source, tmp_path / "other", lambda t: t.update({"lm_head.weight": torch.zeros(512, 128)}))
    (found,) = errors(other)
    assert found.place == "lm_head.weight"
    assert "the same values as model.embed_tokens.weight" in found.expected


def test_plain_tensors_are_checked_too(shared: Path, tmp_path: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"] / 0
        tensors["model.layers.0.input_layernorm.weight"] = torch.ones(3)

    found = errors(damaged(reference(shared, "dense", "NVFP4_DEFAULT_CFG"), tmp_path / "copy", damage))
    assert {(f.place, f.found) for f in found} == {
        ("model.norm.weight", "256 of 256 values that are NaN or infinite"),
        ("model.layers.0.input_layernorm.weight", "F32 [3]"),
    }


def test_what_cannot_be_verified(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown target 'vlm'"):
        octavo.verify_checkpoint(reference(shared, "dense", "NVFP4_DEFAULT_CFG"), "vlm")
    with pytest.raises(
        CheckpointError, match="is no quantized checkpoint of a dialect that is verified; known: comp"
    ):
        octavo.verify_checkpoint(shared / "reference" / "modelopt" / "dense" / "base", "vllm")
    folder = copied(reference(shared, "dense", "NVFP4_DEFAULT_CFG"), tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    (found,) = octavo.verify_checkpoint(folder, "vllm")
    assert "holds neither model.safetensors nor" in found.found
