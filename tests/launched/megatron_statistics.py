"""Megatron-core models calibrated by two ranks that share their layers, beside the same models in one."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import octavo
from helpers import megatron_cpu as megatron
from launched.common import of_all_ranks, refusal

BATCHES = [megatron.batch(seed=seed) for seed in (3, 4)]
INT4_G16 = {"num_bits": 4, "block_sizes": {-1: 16}}
CONFIGS = {
    "fp8": octavo.FP8_DEFAULT_CFG,
    "nvfp4": octavo.NVFP4_DEFAULT_CFG,
    "int8": {  # a scale for each row of weights
        "quant_cfg": {
            "*weight_quantizer": {"num_bits": 8, "axis": 0},
            "*input_quantizer": {"num_bits": 8},
            "default": {"enable": False},
        },
        "algorithm": "max",
    },
    "int4": {"quant_cfg": {"*weight_quantizer": INT4_G16, "default": {"enable": False}}, "algorithm": "max"},
    "attention": {
        "quant_cfg": {"*[qkv]_bmm_quantizer": {"num_bits": (4, 3)}, "default": {"enable": False}},
        "algorithm": "max",
    },
    "histogram": {
        "quant_cfg": {
            "*input_quantizer": {"num_bits": 8, "calibrator": "histogram"},
            "default": {"enable": False},
        },
        "algorithm": "max",
    },
}
"""With names of quantizers of every layer, the output layer's too."""


def loop(model: nn.Module) -> None:
    megatron.run_schedule(model, BATCHES)


def built(layout: dict[str, int], tied: bool = False, **fields: Any) -> nn.Module:
    megatron.lay_out(**layout)
    return megatron.gpt(megatron.config(**fields), tied=tied)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_buffers() if "quantizer" in name}


def part_of(whole: Tensor, name: str, rank: int) -> Tensor:
    """Return a rank's part of what one rank has: of rows, those of gate and of up, or of blocks of columns."""
    if whole.dim() == 0 or "weight_quantizer" not in name:
        return whole
    if "linear_fc1" in name:
        return torch.cat([half.chunk(2)[rank] for half in whole.chunk(2)])
    if "linear_qkv" in name or "output_layer" in name:
        return whole.chunk(2)[rank]
    return whole.chunk(2, 1)[rank] if whole.dim() == 2 else whole


def differing(
    found: dict[str, Tensor], whole: dict[str, Tensor], tolerance: float, weights: bool
) -> list[str]:
    parts = {name: part_of(whole[name], name, dist.get_rank()) for name in found if name in whole}
    return [
        name
        for name, part in parts.items()
        if ("weight_quantizer" in name) == weights
        and not torch.allclose(found[name], part, rtol=tolerance, atol=0)
    ] + sorted(found.keys() ^ whole.keys())


def divided(config: Any, tied: bool = False, **fields: Any) -> dict[str, Any]:
    """Compare a model of two ranks with that of one: its quantizers' state, and its losses."""
    plain = megatron.run_schedule(built({}, tied), BATCHES)
    one = octavo.quantize(built({}, tied), copy.deepcopy(config), loop, quiet=True)
    whole, losses = state_of(one), megatron.run_schedule(one, BATCHES)
    two = octavo.quantize(built({"tp": 2}, tied, **fields), copy.deepcopy(config), loop, quiet=True)
    found = state_of(two)
    return {
        "tensors": len(found),
        "weights": of_all_ranks(differing(found, whole, 0, weights=True)),
        "inputs": of_all_ranks(differing(found, whole, 1e-6, weights=False)),
        "losses": [plain, losses, megatron.run_schedule(two, BATCHES)],
    }


def codes(config: Any) -> dict[str, float]:
    """Return for each layer the share of codes of its weight that are those of one rank."""
    one = octavo.quantize(built({}), copy.deepcopy(config), loop, quiet=True)
    rounded = {
        n: m.weight_quantizer(m.weight).detach()
        for n, m in one.named_modules()
        if hasattr(m, "weight_quantizer")
    }
    two = octavo.quantize(built({"tp": 2}), copy.deepcopy(config), loop, quiet=True)
    shares = {}
    for name, layer in two.named_modules():
        if hasattr(layer, "weight_quantizer"):
            expected = part_of(rounded[name], f"{name}.weight_quantizer", dist.get_rank())
            shares[name] = float((layer.weight_quantizer(layer.weight) == expected).double().mean())
    return shares


def data_parallel() -> dict[str, Any]:
    """Two ranks with half of the data each: the maxima of all of it."""
    one = octavo.quantize(built({}), octavo.FP8_DEFAULT_CFG, quiet=True, forward_loop=loop)
    whole, rank = state_of(one), dist.get_rank()
    two = octavo.quantize(
        built({}),
        octavo.FP8_DEFAULT_CFG,
        lambda m: megatron.run_schedule(m, BATCHES[rank : rank + 1]),
        quiet=True,
    )
    found = state_of(two)
    return {"differing": of_all_ranks([n for n in whole if not torch.equal(whole[n], found[n])])}


def gradients() -> dict[str, Any]:
    """Gradients of a quantized model under tensor and sequence parallelism, beside those of one rank."""
    found = []
    for layout, fields in (({}, {}), ({"tp": 2}, {}), ({"tp": 2}, {"sequence_parallel": True})):
        model = octavo.quantize(built(layout, **fields), octavo.FP8_DEFAULT_CFG, loop, quiet=True)
        model.train()
        sum(model(**batch).mean() for batch in BATCHES).backward()
        block = model.decoder.layers[0]
        row = block.mlp.linear_fc2.weight.grad
        found.append(
            (block.self_attention.linear_qkv.weight.grad, row, model.embedding.word_embeddings.weight.grad)
        )
    (qkv, row, words), *others = found
    rank = dist.get_rank()
    expected = (qkv.chunk(2)[rank], row.chunk(2, 1)[rank], words.chunk(2)[rank])
    near = [
        [torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(other, expected, strict=True)]
        for other in others
    ]
    return {"near": of_all_ranks(near), "nonzero": [bool(t.abs().sum() > 0) for t in (qkv, row, words)]}


def refused() -> dict[str, str]:
    model = built({"tp": 2})
    int4 = {
        "quant_cfg": {
            "*weight_quantizer": {"num_bits": 4, "block_sizes": {-1: 64}},
            "default": {"enable": False},
        },
        "algorithm": "max",
    }
    with torch.no_grad():
        spoiled = built({"tp": 2})
        if dist.get_rank() == 1:
            spoiled.decoder.layers[1].mlp.linear_fc2.weight[0, 0] = torch.nan
    return {
        "blocks": refusal(lambda: octavo.quantize(model, int4, quiet=True)),
        "smoothquant": refusal(lambda: octavo.quantize(model, octavo.INT8_SMOOTHQUANT_CFG, loop, quiet=True)),
        "nan": of_all_ranks(
            refusal(lambda: octavo.quantize(spoiled, octavo.FP8_DEFAULT_CFG, loop, quiet=True))
        ),
        "plain": sorted({type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__}),
    }


def results() -> dict[str, Any]:
    return {
        "fp8": divided(CONFIGS["fp8"]),
        "fp8_sp": divided(CONFIGS["fp8"], sequence_parallel=True),
        "nvfp4": divided(CONFIGS["nvfp4"]),
        "int8": divided(CONFIGS["int8"]),
        "int8_tied": divided(CONFIGS["int8"], tied=True),
        "int4": divided(CONFIGS["int4"]),
        "attention": divided(CONFIGS["attention"]),
        "histogram": divided(CONFIGS["histogram"]),
        "codes": codes(CONFIGS["int8"]),
        "data": data_parallel(),
        "gradients": gradients(),
        "refused": refused(),
    }
