"""Families whose names and fields are the reader's alone: ModelOpt writes no file of them to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.tensorrt_llm_models import DECODER, exported, tiny
from helpers.tiny import token_batches
from octavo.exporters.tensorrt_llm.rank_reader import RankReader

Weights = Mapping[str, Tensor]
HEAD, HEADS = 32, 4
LLAMA_LIKE = {**DECODER, "vocab_size": 128, "head_dim": HEAD}
EXPERTS = {**LLAMA_LIKE, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
UNGROUPED = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"} | {
    "vocab_size": 128
}
OPT = {**UNGROUPED, "ffn_dim": 256, "word_embed_proj_dim": 128, "activation_function": "relu"}


def renamed(w: Weights, prefix: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"{ours}.{kind}": w[f"{prefix}.{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
        if f"{prefix}.{theirs}.{kind}" in w
    }


def joined(w: Weights, prefix: str) -> dict[str, Tensor]:
    """Return q, k and v of separate layers, one below the other."""
    return {
        f"attention.qkv.{kind}": torch.cat([w[f"{prefix}.{letter}_proj.{kind}"] for letter in "qkv"])
        for kind in ("weight", "bias")
        if f"{prefix}.q_proj.{kind}" in w
    }


def grouped(tensor: Tensor, kv_heads: int) -> Tensor:
    """Return [q; k; v] of rows that are queries, key and value of one group, then of the next."""
    groups = tensor.unflatten(0, (kv_heads, HEADS // kv_heads + 2, HEAD))
    return torch.cat([groups[:, :-2].flatten(0, 2), groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)])


def experts(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"model.layers.{block}"
    gate, up = w[f"{b}.mlp.experts.gate_up_proj"].chunk(2, 1)
    names = {"attention.dense": "self_attn.o_proj", "input_layernorm": "input_layernorm",
             "post_layernorm": "post_attention_layernorm", "attention.q_layernorm": "self_attn.q_norm",
             "attention.k_layernorm": "self_attn.k_norm"}  # fmt: skip
    return {
        **joined(w, f"{b}.self_attn"),
        **renamed(w, b, names),
        "mlp.router.weight": w[f"{b}.mlp.gate.weight"].float(),
        "mlp.fc.weight": torch.cat([up, gate], 1),
        "mlp.proj.weight": w[f"{b}.mlp.experts.down_proj"],
    }


def shared_expert(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"model.layers.{block}.mlp"
    halves = [w[f"{b}.shared_expert.{name}.weight"] for name in ("up_proj", "gate_proj")]
    return {
        **experts(w, block),
        "mlp.shared_expert.fc.weight": torch.cat(halves),
        **renamed(w, b, {"mlp.shared_expert.proj": "shared_expert.down_proj",
                         "mlp.shared_expert_gate": "shared_expert_gate"}),
    }  # fmt: skip


def gemma2(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"model.layers.{block}"
    norms = {"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm",
             "pre_feedforward_layernorm": "pre_feedforward_layernorm",
             "post_feedforward_layernorm": "post_feedforward_layernorm"}  # fmt: skip
    added = {name: (t.float() + 1).bfloat16() for name, t in renamed(w, b, norms).items()}
    return {**gated(w, b), **added}


def gated(w: Weights, prefix: str) -> dict[str, Tensor]:
    names = {"attention.dense": "self_attn.o_proj", "mlp.fc": "mlp.gate_proj", "mlp.gate": "mlp.up_proj",
             "mlp.proj": "mlp.down_proj"}  # fmt: skip
    return {**joined(w, f"{prefix}.self_attn"), **renamed(w, prefix, names)}


def cohere(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"model.layers.{block}"
    return {**gated(w, b), **renamed(w, b, {"input_layernorm": "input_layernorm"})}


def glm(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"model.layers.{block}"
    gate, up = w[f"{b}.mlp.gate_up_proj.weight"].chunk(2)
    names = {"attention.dense": "self_attn.o_proj", "mlp.proj": "mlp.down_proj",
             "input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"}  # fmt: skip
    return {**joined(w, f"{b}.self_attn"), **renamed(w, b, names), "mlp.fc.weight": torch.cat([up, gate])}


def opt(w: Weights, block: int) -> dict[str, Tensor]:
    b = f"model.decoder.layers.{block}"
    names = {"attention.dense": "self_attn.out_proj", "mlp.fc": "fc1", "mlp.proj": "fc2",
             "input_layernorm": "self_attn_layer_norm", "post_layernorm": "final_layer_norm"}  # fmt: skip
    return {**joined(w, f"{b}.self_attn"), **renamed(w, b, names)}


def falcon(kv_heads: int, **norms: str) -> Callable[[Weights, int], dict[str, Tensor]]:
    names = {"attention.qkv": "self_attention.query_key_value", "attention.dense": "self_attention.dense",
             "mlp.fc": "mlp.dense_h_to_4h", "mlp.proj": "mlp.dense_4h_to_h", **norms}  # fmt: skip

    def rows(w: Weights, block: int) -> dict[str, Tensor]:
        found = renamed(w, f"transformer.h.{block}", names)
        return {n: grouped(t, kv_heads) if ".qkv." in n else t for n, t in found.items()}

    return rows


@dataclass(frozen=True)
class Case:
    """A tiny model, the rows of its blocks, and what config.json says that only this family has."""

    model_type: str
    config: Mapping[str, Any]
    rows: Callable[[Weights, int], dict[str, Tensor]]
    fields: Mapping[str, Any]

    def model(self, **changes: Any) -> nn.Module:
        return tiny(self.model_type, **{**self.config, **changes})


CASES = {
    "Qwen2-MoE": Case(
        "qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 96}, shared_expert,
        {"architecture": "Qwen2MoeForCausalLM", "qwen_type": "qwen2_moe", "hidden_act": "swiglu", "seq_length": 64,
         "moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 96, "decoder": "qwen",
         "moe": {"num_experts": 4, "top_k": 2, "normalization_mode": 0}},
    ),
    "Qwen3-MoE": Case(
        "qwen3_moe", {**EXPERTS, "norm_topk_prob": True}, experts,
        {"architecture": "Qwen3MoeForCausalLM", "qwen_type": "qwen3_moe", "hidden_act": "swiglu", "seq_length": 64,
         "moe_intermediate_size": 64, "attn_bias": False,
         "moe": {"num_experts": 4, "top_k": 2, "normalization_mode": 1}},
    ),
    "Gemma 2": Case(
        "gemma2", {**LLAMA_LIKE, "query_pre_attn_scalar": 144}, gemma2,
        {"architecture": "Gemma2ForCausalLM", "query_pre_attn_scalar": 144, "final_logit_softcapping": 30.0,
         "attn_logit_softcapping": 50.0, "hidden_act": "gelu_pytorch_tanh", "share_embedding_table": True},
    ),
    "Cohere": Case(
        "cohere", {**LLAMA_LIKE, "logit_scale": 0.25}, cohere,
        {"architecture": "CohereForCausalLM", "output_multiplier_scale": 0.25, "attn_bias": False,
         "qk_layernorm": False, "position_embedding_type": "rope_gptj", "rmsnorm": False, "rotary_base": 500000.0},
    ),
    "GLM": Case(
        "glm", {**LLAMA_LIKE, "attention_bias": True}, glm,
        {"architecture": "ChatGLMForCausalLM", "chatglm_version": "glm4", "add_qkv_bias": True,
         "add_bias_linear": False, "position_embedding_type": "rope_gptj", "rotary_pct": 0.5, "hidden_act": "swiglu"},
    ),
    "OPT": Case(
        "opt", OPT, opt,
        {"architecture": "OPTForCausalLM", "do_layer_norm_before": True, "hidden_act": "relu",
         "position_embedding_type": "learned_absolute", "max_position_embeddings": 64, "intermediate_size": 256},
    ),
    "Falcon 7B": Case(
        "falcon", UNGROUPED, falcon(1, input_layernorm="input_layernorm"),
        {"architecture": "FalconForCausalLM", "num_key_value_heads": 1, "parallel_attention": True, "bias": False,
         "new_decoder_architecture": False, "position_embedding_type": "rope_gpt_neox", "hidden_act": "gelu"},
    ),
    "Falcon 40B": Case(
        "falcon", {**UNGROUPED, "new_decoder_architecture": True, "num_kv_heads": 2},
        falcon(2, input_layernorm="ln_attn", mlp_layernorm="ln_mlp"),
        {"num_key_value_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 2},
    ),
    "Falcon with ALiBi": Case(
        "falcon", {**UNGROUPED, "multi_query": False, "alibi": True, "bias": True},
        falcon(4, input_layernorm="input_layernorm"),
        {"num_key_value_heads": 4, "position_embedding_type": "alibi_with_scale", "bias": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_blocks_hold_these_rows_and_config_these_fields(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    model = case.model()
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}

    tensors, config = exported(model, tmp_path / "out")

    for block in range(2):
        prefix = f"transformer.layers.{block}."
        found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        expected = case.rows(weights, block)
        assert found.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert {key: config.get(key) for key in case.fields} == case.fields


@pytest.mark.parametrize("name", CASES)
def test_ranks_put_together_are_one_rank_and_the_reader_has_nothing_to_object(
    tmp_path: Path, name: str
) -> None:
    model = octavo.quantize(CASES[name].model(), "FP8_DEFAULT_CFG", token_batches(1), quiet=True)

    whole, _ = exported(model, tmp_path / "one", target="trtllm")
    exported(
        model, tmp_path / "four", target="trtllm", inference_tensor_parallel=2, inference_pipeline_parallel=2
    )

    ranks = RankReader(tmp_path / "four")
    assert set(ranks.names()) - {"lm_head.weight"} == whole.keys() - {"lm_head.weight"}
    different = [n for n, t in whole.items() if not torch.equal(as_bytes(ranks.tensor(n)), as_bytes(t))]
    assert different == []
    for folder in ("one", "four"):
        assert octavo.verify_checkpoint(tmp_path / folder, "trtllm") == []


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def test_positions_of_opt_start_at_the_third_row(tmp_path: Path) -> None:
    model = CASES["OPT"].model()

    tensors, _ = exported(model, tmp_path / "out")

    table = model.get_parameter("model.decoder.embed_positions.weight").detach()
    assert table.shape[0] == 66
    assert torch.equal(tensors["transformer.position_embedding.weight"], table[2:])


def test_the_shared_expert_has_one_scale_for_both_branches_in_fp8(tmp_path: Path) -> None:
    model = octavo.quantize(CASES["Qwen2-MoE"].model(), "FP8_DEFAULT_CFG", token_batches(1), quiet=True)

    tensors, config = exported(model, tmp_path / "out", target="trtllm")

    layer = "transformer.layers.0.mlp.shared_expert.fc"
    branches = [
        model.get_parameter(f"model.layers.0.mlp.shared_expert.{name}.weight").detach().float()
        for name in ("up_proj", "gate_proj")
    ]
    scale = torch.cat(branches).abs().amax() / 448
    assert torch.equal(tensors[f"{layer}.weights_scaling_factor"], scale.reshape(1))
    assert tensors["transformer.layers.0.mlp.shared_expert_gate.weight"].dtype == torch.bfloat16
    assert "transformer.layers.0.mlp.shared_expert_gate" in config["quantization"]["exclude_modules"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Cohere", {"use_qk_norm": True}, "type 'cohere', .* use_qk_norm is True instead of False"),
        (
            "Qwen3-MoE",
            {"attention_bias": True},
            "type 'qwen3_moe', .* attention_bias is True instead of False",
        ),
        ("OPT", {"word_embed_proj_dim": 64}, "type 'opt', .* word_embed_proj_dim is 64 instead of 128"),
    ],
)
def test_variants_that_the_reader_does_not_compute(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(octavo.ExportError, match=message):
        exported(CASES[name].model(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_without_a_place_are_not_left_out_in_silence(tmp_path: Path) -> None:
    model = CASES["Cohere"].model()
    model.get_submodule("model.layers.1").extra = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)

    with pytest.raises(
        octavo.ExportError, match=r"1 tensors of the model have no place .*layers\.1\.extra\.weight"
    ):
        exported(model, tmp_path / "out")
