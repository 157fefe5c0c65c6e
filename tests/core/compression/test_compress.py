"""Packed weights: the model computes what it did, from codes and scales alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_snapshot import same_bits
from helpers.compressed_models import FORMATS, quantized_llama, weights_only
from helpers.modes_saved import logits
from helpers.tiny import tiny_llama, token_batches
from octavo.core.modules import packed_layers, quantized_layers

pytestmark = pytest.mark.usefixtures("reference_kernels")  # bits of products are compared

LAYER = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.bfloat16) for name in FORMATS), ("int8", torch.float32), ("nvfp4", torch.float32)],
)
def test_in_neutral_numbers_nothing_changes(name: str, dtype: torch.dtype) -> None:
    model = quantized_llama(FORMATS[name], dtype)
    expected = logits(model)

    octavo.compress(model, dialect="neutral", quiet=True)

    assert len(list(packed_layers(model))) == 7
    assert same_bits(logits(model), expected)


@pytest.mark.parametrize(
    "name", ["int8", "fp8", "nvfp4", "mxfp4", "int4 then fp8", "smoothed int4", "low rank"]
)
def test_in_a_dialects_numbers_it_is_the_finalized_model(name: str) -> None:
    model = quantized_llama(FORMATS[name])
    with octavo.finalized(model, "unified_hf"):
        expected = logits(model)

    octavo.compress(model, quiet=True)

    assert same_bits(logits(model), expected)


def test_a_packed_layer_holds_nothing_but_bytes_and_shows_a_weight() -> None:
    model = octavo.compress(quantized_llama("NVFP4_DEFAULT_CFG"), quiet=True)
    layer: Any = model.get_submodule(LAYER)

    packed = {name: t for name, t in layer.state_dict(keep_vars=True).items() if "quantizer" not in name}
    assert {name: (t.dtype, tuple(t.shape), t.requires_grad) for name, t in packed.items()} == {
        "weight_packed.payload": (torch.uint8, (128, 128), False),
        "weight_packed.scale": (torch.uint8, (128, 16, 1), False),
        "weight_packed.global_scale": (torch.uint8, (4,), False),
    }
    assert list(layer.weight_quantizer.buffers()) == []
    assert layer.weight.shape == (128, 256)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight.dequantize(), layer.weight_packed.dequantize())
    assert isinstance(layer, nn.Linear)
    assert "absorbed" in repr(layer)


@pytest.mark.parametrize(("name", "ratio"), [("int4", 0.30), ("int8", 0.53), ("nvfp4", 0.29)])
def test_how_much_memory_is_left(name: str, ratio: float) -> None:
    model = quantized_llama(FORMATS[name])
    before = sum(layer.weight.nbytes for _, layer in quantized_layers(model) if hasattr(layer, "weight"))

    octavo.compress(model, dialect="neutral", quiet=True)

    after = sum(
        tensor.nbytes
        for name, layer in packed_layers(model)
        for part, tensor in [*layer.named_parameters(), *layer.named_buffers()]
        if not part.startswith("input_quantizer")
    )
    assert after <= ratio * before


def test_dense_weights_are_let_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a weight is packed, those before it are gone: memory is bounded by the model and one layer."""
    import weakref

    from octavo.core.compression import compress as verb

    model = quantized_llama("INT8_WEIGHT_ONLY_CFG")
    layers = [layer for _, layer in quantized_layers(model) if hasattr(layer, "weight")]
    weights = [weakref.ref(layer.weight) for layer in layers if layer.weight_quantizer.enabled]
    alive = []
    original = verb.hold_packed

    def watched(*args: Any) -> None:
        original(*args)
        alive.append(sum(weight() is not None for weight in weights))

    monkeypatch.setattr(verb, "hold_packed", watched)
    octavo.compress(model, quiet=True)

    # The layer at hand and what `layers` of this test still hold of the next ones.
    assert alive == sorted(alive, reverse=True)
    assert alive[-1] <= 1
    assert len(alive) == 7


def test_patterns_choose_layers_and_the_rest_can_follow() -> None:
    model = quantized_llama("FP8_DEFAULT_CFG")
    with octavo.finalized(model, "unified_hf"):
        expected = logits(model)

    octavo.compress(model, "*.mlp.*", quiet=True)
    assert [name.rpartition(".")[2] for name, _ in packed_layers(model)] == [
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    assert same_bits(logits(model), expected)

    octavo.compress(model, ["*q_proj", "*k_proj"], quiet=True)
    assert len(list(packed_layers(model))) == 5
    octavo.compress(model, quiet=True)
    assert len(list(packed_layers(model))) == 7
    assert same_bits(logits(model), expected)
    assert [record.mode for record in octavo.history(model)] == ["quantize", "compress"]


def test_it_says_what_it_saved_and_what_is_off_now(capsys: pytest.CaptureFixture[str]) -> None:
    config = octavo.preset("FP8_DEFAULT_CFG")
    config["quant_cfg"].append({"quantizer_name": "*down_proj.output_quantizer", "cfg": {"num_bits": (4, 3)}})
    model = quantized_llama(config)

    octavo.compress(model)

    said = capsys.readouterr().err
    assert "packed 7 weights: 147,484 bytes instead of 294,912" in said
    assert "no place for 1 quantizers: model.layers.0.mlp.down_proj.output_quantizer; they are off" in said
    assert not model.get_submodule(LAYER).output_quantizer.enabled


def test_copies_and_state_dicts_are_independent() -> None:
    model = octavo.compress(quantized_llama("INT4_BLOCKWISE_WEIGHT_ONLY_CFG"), quiet=True)
    expected = logits(model)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.copy_(parameter * 3)
    assert not torch.equal(logits(clone), expected)
    assert same_bits(logits(model), expected)

    clone.load_state_dict(model.state_dict())

    assert same_bits(logits(clone), expected)
    assert not any(name.endswith("proj.weight") for name in model.state_dict())


def test_conversions_of_dtype_leave_codes_and_scales_alone() -> None:
    model = octavo.compress(quantized_llama("NVFP4_DEFAULT_CFG"), quiet=True)
    layer: Any = model.get_submodule(LAYER)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    model.to(torch.float16).bfloat16()

    for name, tensor in layer.state_dict().items():
        assert tensor.dtype == before[name].dtype, name
        assert same_bits(tensor, before[name]), name


@pytest.mark.parametrize("name", ["int8", "nvfp4", "int4 then fp8"])
def test_it_compiles_as_one_graph(name: str) -> None:
    model = octavo.compress(quantized_llama(FORMATS[name]), quiet=True)
    layers: Any = model.get_submodule("model.layers.0.mlp")
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(0)).bfloat16()

    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")

    assert same_bits(compiled(x), layers(x))


def test_gradients_pass_through_packed_weights() -> None:
    model = quantized_llama(weights_only(num_bits=4, block_sizes={-1: 32}), torch.float32)
    folded = octavo.fold_weight(copy.deepcopy(model))
    octavo.compress(model, dialect="neutral", quiet=True)

    found, expected = (gradient(one) for one in (model, folded))

    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert found.abs().sum() > 0


def gradient(model: nn.Module) -> Tensor:
    embedding: Any = model.get_submodule("model.embed_tokens")
    model.zero_grad()
    model(token_batches()[0]).logits.square().sum().backward()
    found: Tensor = embedding.weight.grad
    return found


def test_a_finalized_model_is_packed_as_it_is() -> None:
    model = quantized_llama("FP8_DEFAULT_CFG")
    octavo.finalize(model, "compressed_tensors")
    expected = logits(model)

    octavo.compress(model, dialect="compressed_tensors", quiet=True)

    assert same_bits(logits(model), expected)
    with pytest.raises(octavo.ModeError, match="packed in the numbers of compressed_tensors, which stay"):
        octavo.unfinalize(model)


def test_tied_embeddings_stay_tied() -> None:
    model = tiny_llama(torch.bfloat16, tie_word_embeddings=True)
    octavo.quantize(model, "FP8_DEFAULT_CFG", token_batches(), quiet=True)

    octavo.compress(model, quiet=True)

    assert model.lm_head.weight is model.model.embed_tokens.weight
