"""Each kind of model: config.json as ModelOpt wrote it, and the rows of which layers make each tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import octavo
from helpers.tensorrt_llm_models import DECODER, exported, tiny
from helpers.tiny import token_batches

RECORDED = yaml.safe_load(Path(__file__).with_name("peer_configs.yaml").read_text())
LLAMA_LIKE = {**DECODER, "vocab_size": 128}
GPT = {
    "n_embd": 128,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 128,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MPT = {"d_model": 128, "n_heads": 4, "n_layers": 2, "vocab_size": 128, "max_seq_len": 64}
CONFIGS = {
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "mpt": MPT,
    "gemma": {**LLAMA_LIKE, "head_dim": 32},
    "qwen3": {**LLAMA_LIKE, "head_dim": 32},
    "gptj": {**GPT, "rotary_dim": 16},
    "bloom": {"hidden_size": 128, "n_head": 4, "n_layer": 2, "vocab_size": 128},
}
Weights = Mapping[str, Tensor]


def model_of(model_type: str, **changes: Any) -> nn.Module:
    return tiny(model_type, **{**CONFIGS.get(model_type, LLAMA_LIKE), **changes})


@pytest.mark.parametrize("model_type", RECORDED["models"])
def test_config_is_the_one_that_modelopt_wrote(tmp_path: Path, model_type: str) -> None:
    model = octavo.quantize(model_of(model_type), "FP8_DEFAULT_CFG", token_batches(1), quiet=True)

    _, config = exported(model, tmp_path / "out", decoder_type=RECORDED["models"][model_type]["decoder"])

    assert config.pop("producer")["name"] == "modelopt"
    assert config == {**RECORDED["all"], **RECORDED["models"][model_type]}


def llama_like(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"model.layers.{block}"
    qkv = [f"{b}.self_attn.{letter}_proj" for letter in "qkv"]
    found = {
        "attention.qkv.weight": torch.cat([w[f"{name}.weight"] for name in qkv]),
        "attention.dense.weight": w[f"{b}.self_attn.o_proj.weight"],
        "mlp.fc.weight": w[f"{b}.mlp.gate_proj.weight"],
        "mlp.gate.weight": w[f"{b}.mlp.up_proj.weight"],
        "mlp.proj.weight": w[f"{b}.mlp.down_proj.weight"],
        "input_layernorm.weight": w[f"{b}.input_layernorm.weight"],
        "post_layernorm.weight": w[f"{b}.post_attention_layernorm.weight"],
    }
    if f"{qkv[0]}.bias" in w:
        found["attention.qkv.bias"] = torch.cat([w[f"{name}.bias"] for name in qkv])
    return found


def qwen3(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"model.layers.{block}.self_attn"
    norms = {f"attention.{letter}_layernorm.weight": w[f"{b}.{letter}_norm.weight"] for letter in "qk"}
    return llama_like(w, block) | norms


def gemma(w: Weights, block: int) -> dict[str, Tensor]:
    found = llama_like(w, block)
    return {name: (t.float() + 1).bfloat16() if "norm" in name else t for name, t in found.items()}


def nemotron(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"model.layers.{block}"
    norms = {"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"}
    return {
        **{k: t for k, t in llama_like({**w, f"{b}.mlp.gate_proj.weight": w[f"{b}.mlp.up_proj.weight"]}, block).items()
           if k != "mlp.gate.weight" and "norm" not in k},
        **{f"{n}.weight": (w[f"{b}.{theirs}.weight"].float() + 1).bfloat16() for n, theirs in norms.items()},
        **{f"{n}.bias": w[f"{b}.{theirs}.bias"] for n, theirs in norms.items()},
    }  # fmt: skip


def gpt2(w: Weights, block: int) -> dict[str, Tensor]:
    names = {
        "attention.qkv": "attn.c_attn",
        "attention.dense": "attn.c_proj",
        "mlp.fc": "mlp.c_fc",
        "mlp.proj": "mlp.c_proj",
        "input_layernorm": "ln_1",
        "post_layernorm": "ln_2",
    }
    found = {
        f"{ours}.{kind}": w[f"transformer.h.{block}.{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    return {name: tensor.T if tensor.dim() == 2 else tensor for name, tensor in found.items()}


def mpt(w: Weights, block: int) -> dict[str, Tensor]:
    names = {
        "attention.qkv": "attn.Wqkv",
        "attention.dense": "attn.out_proj",
        "mlp.fc": "ffn.up_proj",
        "mlp.proj": "ffn.down_proj",
        "input_layernorm": "norm_1",
        "post_layernorm": "norm_2",
    }
    return {f"{o}.weight": w[f"transformer.blocks.{block}.{t}.weight"] for o, t in names.items()}


def phi3(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"model.layers.{block}"
    gate, up = w[f"{b}.mlp.gate_up_proj.weight"].chunk(2)
    return {
        "attention.qkv.weight": w[f"{b}.self_attn.qkv_proj.weight"],
        "attention.dense.weight": w[f"{b}.self_attn.o_proj.weight"],
        "mlp.fc.weight": torch.cat([up, gate]),
        "mlp.proj.weight": w[f"{b}.mlp.down_proj.weight"],
        "input_layernorm.weight": w[f"{b}.input_layernorm.weight"],
        "post_layernorm.weight": w[f"{b}.post_attention_layernorm.weight"],
    }


def gpt_neox(w: Weights, block: int) -> dict[str, Tensor]:
    names = {
        "attention.qkv": "attention.query_key_value",
        "attention.dense": "attention.dense",
        "mlp.fc": "mlp.dense_h_to_4h",
        "mlp.proj": "mlp.dense_4h_to_h",
        "input_layernorm": "input_layernorm",
        "post_attention_layernorm": "post_attention_layernorm",
    }
    found = {
        f"{ours}.{kind}": w[f"gpt_neox.layers.{block}.{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):  # q, k and v of one head, then of the next
        heads = found[f"attention.qkv.{kind}"].unflatten(0, (4, 3, 32))
        found[f"attention.qkv.{kind}"] = heads.transpose(0, 1).flatten(0, 2)
    return found


def gptj(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"transformer.h.{block}"
    return {
        "attention.qkv.weight": torch.cat([w[f"{b}.attn.{letter}_proj.weight"] for letter in "qkv"]),
        "attention.dense.weight": w[f"{b}.attn.out_proj.weight"],
        **{f"mlp.{ours}.{kind}": w[f"{b}.mlp.{theirs}.{kind}"]
           for ours, theirs in (("fc", "fc_in"), ("proj", "fc_out")) for kind in ("weight", "bias")},
        **{f"input_layernorm.{kind}": w[f"{b}.ln_1.{kind}"] for kind in ("weight", "bias")},
    }  # fmt: skip


ROWS: dict[str, Callable[[Weights, int], dict[str, Tensor]]] = {
    "llama": llama_like,
    "mistral": llama_like,
    "qwen2": llama_like,
    "qwen3": qwen3,
    "gemma": gemma,
    "nemotron": nemotron,
    "gpt2": gpt2,
    "mpt": mpt,
    "phi3": phi3,
    "gpt_neox": gpt_neox,
    "gptj": gptj,
}


@pytest.mark.parametrize("model_type", ROWS)
def test_blocks_hold_these_rows(tmp_path: Path, model_type: str) -> None:
    model = model_of(model_type)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}

    tensors, _ = exported(model, tmp_path / "out")

    for block in range(2):
        prefix = f"transformer.layers.{block}."
        found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        expected = ROWS[model_type](weights, block)
        assert found.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("model_type", [*ROWS, "gpt_bigcode", "starcoder2", "phi", "bloom"])
def test_the_reader_has_nothing_to_object_to(tmp_path: Path, model_type: str) -> None:
    exported(model_of(model_type), tmp_path / "out", target="trtllm", inference_tensor_parallel=2)

    assert octavo.verify_checkpoint(tmp_path / "out", "trtllm") == []


def test_outside_the_blocks(tmp_path: Path) -> None:
    model = model_of("gpt2")
    w = model.state_dict()

    tensors, _ = exported(model, tmp_path / "out")

    outside = {name: t for name, t in tensors.items() if ".layers." not in name}
    expected = {
        "transformer.vocab_embedding.weight": w["transformer.wte.weight"],
        "transformer.position_embedding.weight": w["transformer.wpe.weight"],
        "transformer.ln_f.weight": w["transformer.ln_f.weight"],
        "transformer.ln_f.bias": w["transformer.ln_f.bias"],
        "lm_head.weight": w["transformer.wte.weight"],  # tied, and written all the same
    }
    assert outside.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(outside[name], expected[name])] == []


def test_a_head_that_is_the_embedding_is_left_out_of_gemma(tmp_path: Path) -> None:
    model = model_of("gemma")

    tensors, _ = exported(model, tmp_path / "one")
    octavo.export_tensorrt_llm_checkpoint(
        model, export_dir=tmp_path / "two", inference_pipeline_parallel=2, quiet=True
    )

    from safetensors.torch import load_file

    assert "lm_head.weight" not in tensors
    last = load_file(tmp_path / "two" / "rank1.safetensors")
    assert torch.equal(last["lm_head.weight"], tensors["transformer.vocab_embedding.weight"])
    untied, config = exported(model_of("gemma", tie_word_embeddings=False), tmp_path / "untied")
    assert "lm_head.weight" in untied
    assert config["share_embedding_table"] is False


def test_int4_appends_rows_to_the_vocabulary(tmp_path: Path) -> None:
    model = octavo.quantize(model_of("llama", vocab_size=100), "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", quiet=True)

    tensors, config = exported(model, tmp_path / "out")

    weights = model.state_dict()
    for ours, theirs in (("transformer.vocab_embedding", "model.embed_tokens"), ("lm_head", "lm_head")):
        found, expected = tensors[f"{ours}.weight"], weights[f"{theirs}.weight"]
        assert torch.equal(found, torch.cat([expected, torch.zeros(28, 128, dtype=torch.bfloat16)]))
    assert config["vocab_size"] == 128


def test_fields_of_models_that_the_peer_does_not_write(tmp_path: Path) -> None:
    """Partly rotated heads, kinds of positions, biases of heads."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    expected = {
        "phi": {
            "rotary_pct": 0.5,
            "lm_head_bias": True,
            "bias": True,
            "hidden_act": "gelu_new",
            "decoder": "phi",
        },
        "gptj": {"position_embedding_type": "rope_gptj", "rotary_dim": 16, "lm_head_bias": True},
        "gpt_neox": {"rotary_pct": 0.25, "rotary_emb_base": 10000, "bias": True, "rmsnorm": False},
        "bloom": {"position_embedding_type": "alibi", "hidden_act": "gelu", "num_key_value_heads": 4},
        "phi3": {"hidden_act": "swiglu", "intermediate_size": 256, "rmsnorm": True},
    }
    changes: dict[str, dict[str, Any]] = {"phi": {"rope_parameters": rope}}
    for model_type, fields in expected.items():
        tensors, config = exported(model_of(model_type, **changes.get(model_type, {})), tmp_path / model_type)
        assert {key: config.get(key) for key in fields} == fields
        assert ("lm_head.bias" in tensors) == config["lm_head_bias"]
        assert ("transformer.ln_embed.weight" in tensors) == (model_type == "bloom")
