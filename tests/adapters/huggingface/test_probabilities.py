"""The softmax output and the second product of attention are rounded where asked, and nothing changes where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, BertConfig, BertForMaskedLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import octavo
from helpers.adapters_models import FP8_KV, SIZES, logits, padded_batch, switch_off, tiny_model, tokens
from octavo.core.calibration.collectors import collecting
from octavo.core.errors import UnsupportedError
from octavo.core.modules import QuantAttention, tensor_quantizers
from oracles import number_formats as oracle

E4M3 = {"num_bits": (4, 3)}
SPEC = {
    "element": "e4m3",
    "granularity": {"kind": "tensor"},
    "scale": "float32",
    "global_max": None,
    "dynamic": False,
    "arithmetic": "multiply",
    "ties": "even",
}
ALL = ("q_bmm", "k_bmm", "v_bmm", "p_bmm", "bmm2_output")


def config(*names: str, cfg: dict[str, Any] = E4M3) -> dict[str, Any]:
    return {"quant_cfg": [{"quantizer_name": f"*{name}_quantizer", "cfg": cfg} for name in names]}


def quantized(model: nn.Module, *names: str, cfg: dict[str, Any] = E4M3) -> nn.Module:
    return octavo.quantize(
        model, {**config(*names, cfg=cfg), "algorithm": "max"}, [padded_batch()], quiet=True
    )


def bert(attention: str) -> nn.Module:
    sizes = {name: value for name, value in SIZES.items() if name not in ("head_dim", "num_key_value_heads")}
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**sizes, attn_implementation=attention)).eval()


def build(architecture: str, attention: str) -> nn.Module:
    return bert(attention) if architecture == "bert" else tiny_model(architecture, attention)


def attention_layers(model: nn.Module) -> list[QuantAttention]:
    return [layer for layer in model.modules() if isinstance(layer, QuantAttention)]


def reference(scales: list[dict[str, float]]) -> Any:
    """Attention in plain torch, each tensor rounded by the oracle with the scales of its layer, in order of calls."""

    def rounded(x: Tensor, amax: float) -> Tensor:
        values = oracle.fake_quantize(x.numpy(), SPEC, torch.tensor(amax).numpy(), None, "float32")
        return torch.from_numpy(values.copy())

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
    ) -> Any:
        amax = scales.pop(0)
        query, key, value = (
            rounded(x, amax[n]) for x, n in ((query, "q_bmm"), (key, "k_bmm"), (value, "v_bmm"))
        )
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * options["scaling"] + mask
        probabilities = rounded(scores.softmax(-1), amax["p_bmm"])
        return rounded((probabilities @ value).transpose(1, 2).contiguous(), amax["bmm2_output"]), None

    return attend


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_all_five_equal_plain_attention_with_rounding(architecture: str, attention: str) -> None:
    model = quantized(build(architecture, attention), *ALL)
    found = logits(model, padded_batch())
    scales = [
        {name: float(layer.get_submodule(f"{name}_quantizer").amax) for name in ALL}
        for layer in attention_layers(model)
    ]
    AttentionInterface.register("reference", reference(scales))
    AttentionMaskInterface.register("reference", ALL_MASK_ATTENTION_FUNCTIONS["eager"])

    assert torch.equal(found, logits(build(architecture, "reference"), padded_batch()))
    assert scales == []
    assert not torch.equal(found, logits(build(architecture, "eager"), padded_batch()))


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_oss", "llama"])
def test_the_models_own_eager_function_runs(architecture: str) -> None:
    """With its soft caps, sinks and grouped heads."""
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2} if architecture == "gpt_oss" else {}
    model = tiny_model(architecture, "eager", **sizes)
    expected = logits(model, padded_batch())
    quantized(model, "p_bmm")

    with collecting(model, {}):
        assert torch.equal(logits(model, padded_batch()), expected)
    assert not torch.equal(logits(model, padded_batch()), expected)


def test_masks_that_sdpa_leaves_out_are_made() -> None:
    model = quantized(tiny_model("llama", "sdpa"), "p_bmm")

    assert torch.equal(logits(model), logits(quantized(tiny_model("llama", "eager"), "p_bmm")))


def test_generation_with_a_cache_equals_generation_without() -> None:
    model = quantized(tiny_model("llama", "sdpa"), "p_bmm")

    cached, whole = (
        model.generate(tokens(1, 4), max_new_tokens=8, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    )

    assert torch.equal(cached, whole)


def test_only_the_output_keeps_the_chosen_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized(tiny_model("llama", "sdpa"), "bmm2_output")
    outputs, received = [], []
    kernel = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(*args: Any, **kwargs: Any) -> Any:
        outputs.append(kernel(*args, **kwargs)[0])
        return outputs[-1], None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", spy)
    projection = model.get_submodule("model.layers.0.self_attn.o_proj")
    projection.register_forward_pre_hook(lambda _, args: received.append(args[0]))

    logits(model)

    quantizer = model.get_submodule("model.layers.0.self_attn.bmm2_output_quantizer")
    assert len(outputs) == 2
    assert torch.equal(received[0], quantizer(outputs[0]).flatten(2))
    assert not torch.equal(received[0], outputs[0].flatten(2))


def test_blocks_of_any_number_of_keys() -> None:
    cfg = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
    model = quantized(tiny_model("llama", "sdpa"), "p_bmm", cfg=cfg)

    assert logits(model).isfinite().all()
    assert not torch.equal(logits(model), logits(tiny_model("llama", "sdpa")))


def test_off_they_are_not_there_or_change_nothing() -> None:
    model = octavo.quantize(tiny_model("llama", "sdpa"), FP8_KV, [tokens()], quiet=True)
    assert {name.rpartition(".")[2] for name, _ in tensor_quantizers(model)} == {
        f"{x}_bmm_quantizer" for x in "qkv"
    }

    model = quantized(tiny_model("llama", "sdpa"), *ALL)
    switch_off(model)
    assert torch.equal(logits(model), logits(tiny_model("llama", "sdpa")))


def test_the_preset_of_attention_in_8_bits(capsys: pytest.CaptureFixture[str]) -> None:
    model = octavo.quantize(tiny_model("llama"), "NVFP4_FP8_MHA_CONFIG", [tokens()])

    assert "warning" not in capsys.readouterr().err
    assert [float(layer.p_bmm_quantizer.amax) for layer in attention_layers(model)] == [1.0, 1.0]
    assert not hasattr(attention_layers(model)[0], "bmm2_output_quantizer")


def test_given_a_format_later_saved_and_taken_off(tmp_path: Path) -> None:
    model = octavo.quantize(tiny_model("llama"), FP8_KV, [tokens()], quiet=True)
    before = logits(model)

    octavo.set_quantizer_attribute(model, "*p_bmm_quantizer", E4M3)
    octavo.calibrate(model, "max", [tokens()], quiet=True)
    expected = logits(model)
    octavo.save(model, tmp_path / "saved")
    restored = octavo.restore(tiny_model("llama"), tmp_path / "saved")

    assert not torch.equal(expected, before)
    assert torch.equal(logits(restored), expected)
    octavo.disable_quantizer(model, "*p_bmm_quantizer")
    assert torch.equal(logits(model), before)
    octavo.unquantize(model)
    assert not any("quantizer" in name for name, _ in model.named_modules())


def test_implementations_with_masks_of_their_own_are_refused() -> None:
    AttentionInterface.register("of_its_own", ALL_ATTENTION_FUNCTIONS["sdpa"])
    AttentionMaskInterface.register("of_its_own", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    message = r"^model\.layers\.0\.self_attn: the softmax .*implementation 'of_its_own' .*'eager' or 'sdpa'"
    with pytest.raises(UnsupportedError, match=message):
        quantized(tiny_model("llama", "of_its_own"), "p_bmm")

    model = quantized(tiny_model("llama", "sdpa"), "p_bmm")
    model.set_attn_implementation("of_its_own")
    with pytest.raises(UnsupportedError, match=r"^QuantLlamaAttention: .*'of_its_own'"):
        logits(model)


def test_layers_without_an_eager_function_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", "sdpa")
    forward = type(model.model.layers[0].self_attn).forward
    monkeypatch.delitem(forward.__globals__, "eager_attention_forward")

    with pytest.raises(
        UnsupportedError, match=r"^model\.layers\.0\.self_attn: .* no eager attention function"
    ):
        quantized(model, "p_bmm")


def test_attention_without_the_interface_is_left_out_by_name() -> None:
    rules = [*octavo.INT8_WEIGHT_ONLY_CFG["quant_cfg"], *config("p_bmm")["quant_cfg"]]

    warnings = octavo.plan(tiny_model("bloom"), {"quant_cfg": rules, "algorithm": "max"}).warnings

    assert any("BloomAttention does not call transformers' attention interface" in text for text in warnings)
