"""Packed weights of layers that are no linear ones: embeddings, convolutions, transposed and stacked weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.adapters_models import logits, tiny_model, tokens
from helpers.calibration_snapshot import same_bits
from helpers.compressed_models import weights_only
from octavo.core.modules import QuantExperts, packed_layers

pytestmark = pytest.mark.usefixtures("reference_kernels")  # bits of products are compared

MOE: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
W8A8: dict[str, Any] = {
    "quant_cfg": [
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
        {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8}},
        {"quantizer_name": "*output_quantizer", "cfg": {"num_bits": 8}},
    ],
    "algorithm": "max",
}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(8, 6, 3), (2, 8, 9)),
        (nn.Conv2d(8, 6, 3, groups=2), (2, 8, 7, 7)),
        (nn.Conv3d(4, 6, 2, bias=False), (1, 4, 5, 5, 5)),
        (nn.ConvTranspose2d(8, 6, 3, stride=2), (2, 8, 5, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_convolutions(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = octavo.quantize(nn.Sequential(layer), W8A8, [x], quiet=True)
    expected = model(x)

    octavo.compress(model, dialect="neutral", quiet=True)

    assert same_bits(model(x), expected)
    assert model[0].weight.shape == expected.new_empty(layer.weight.shape).shape  # type: ignore[union-attr]
    octavo.decompress(model)
    assert same_bits(model(x), expected)


@pytest.mark.parametrize(
    "attributes",
    [{"num_bits": 8, "axis": 0}, {"num_bits": 8}, {"num_bits": 4, "block_sizes": {-1: 16}}],
    ids=["row", "tensor", "block"],
)
@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"max_norm": 1.0}], ids=str)
@torch.no_grad()
def test_embeddings(attributes: dict[str, Any], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[0, 3, 9], [9, 1, 0]])
    model = octavo.quantize(
        nn.Sequential(nn.Embedding(10, 32, **options)), weights_only(**attributes), quiet=True
    )
    expected = model(ids)

    octavo.compress(model, dialect="neutral", quiet=True)

    assert same_bits(model(ids), expected)


def test_only_the_rows_that_are_asked_for_are_decoded() -> None:
    model = octavo.quantize(
        nn.Sequential(nn.Embedding(1000, 16)), weights_only(num_bits=8, axis=0), quiet=True
    )
    octavo.compress(model, dialect="neutral", quiet=True)
    decoded = []
    original = torch.ops.octavo.dequantize

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is original.default:
                decoded.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    with Watch():
        model(torch.tensor([[5, 6, 7]]))

    assert decoded == [(3, 16)]


def test_conv1d_of_gpt2_holds_its_weight_transposed() -> None:
    model = tiny_model("gpt2")
    octavo.quantize(model, "INT8_DEFAULT_CFG", [tokens()], quiet=True)
    dense: Tensor = model.get_submodule("transformer.h.0.mlp.c_fc").weight.detach().clone()  # type: ignore[assignment]
    expected = logits(model)

    octavo.compress(model, dialect="neutral", quiet=True)

    layer: Any = model.get_submodule("transformer.h.0.mlp.c_fc")
    assert same_bits(logits(model), expected)
    assert layer.weight.shape == dense.shape
    assert torch.allclose(layer.weight.dequantize(), dense, atol=float(dense.abs().max()) / 127)
    octavo.decompress(model)
    assert layer.weight.shape == dense.shape
    assert same_bits(logits(model), expected)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "gpt_oss", "llama4_text"])
@pytest.mark.parametrize("config", ["FP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG"])
def test_stacked_experts(model_type: str, config: str) -> None:
    """Transposed, interleaved and biased experts (gpt-oss), batched ones (Llama 4) and plain ones."""
    model = tiny_model(model_type, **MOE)
    model.set_experts_implementation("eager")  # type: ignore[operator]
    octavo.quantize(model, config, [tokens()], quiet=True)
    expected = logits(model)

    octavo.compress(model, dialect="neutral", quiet=True)

    experts = [layer for _, layer in packed_layers(model) if isinstance(layer, QuantExperts)]
    assert [layer.packed_parameters for layer in experts] == [("gate_up_proj", "down_proj")] * 2
    assert same_bits(logits(model), expected)
    octavo.decompress(model)
    assert same_bits(logits(model), expected)


class Scaled(nn.Linear):
    """A layer of somebody else's."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight) * 2


class QuantScaled(octavo.QuantModule, Scaled):
    """Its quantized class, which knows nothing of packed weights."""

    quantizer_names = ("input_quantizer", "weight_quantizer")
    input_quantizer: octavo.TensorQuantizer
    weight_quantizer: octavo.TensorQuantizer

    @classmethod
    def quantizer_shape(cls, layer: Any, quantizer: str) -> tuple[int, ...]:
        return tuple(layer.weight.shape) if quantizer == "weight_quantizer" else (0, layer.weight.shape[1])

    def quantized_weights(self) -> dict[str, Tensor]:
        return {"weight_quantizer": self.weight}

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(self.input_quantizer(input), self.weight_quantizer(self.weight)) * 2


def test_a_registered_class_of_somebody_else_multiplies_with_the_view() -> None:
    octavo.register(Scaled, QuantScaled)
    try:
        x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
        model = octavo.quantize(nn.Sequential(Scaled(32, 16)), W8A8, [x], quiet=True)
        expected = model(x)

        octavo.compress(model, dialect="neutral", quiet=True)

        assert same_bits(model(x), expected)
    finally:
        octavo.unregister(Scaled)
