"""Quantized classes for Transformer Engine's layers, on stand-ins that have its layers' parameters and settings.

Transformer Engine itself needs CUDA. What stand-ins have is what Megatron-core's source sets; they compute nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.identity_op import IdentityOp
from torch import nn

import octavo
from helpers import megatron_cpu as megatron
from launched.common import of_all_ranks

BATCHES = [megatron.batch(seed=seed) for seed in (3, 4)]
OURS = "octavo.adapters.megatron_core.te_layers:Quant"


class StandIn(nn.Module):
    """A layer of Transformer Engine that takes the place, and the parameters, of one of Megatron-core's own."""

    def __init__(self, layer: Any, mode: str, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.config, self.tp_group, self._tp_group = layer.config, layer.tp_group, layer.tp_group
        self.parallel_mode, self.tp_size = mode, layer.tp_group.size()
        self.out_features, self.in_features = layer.weight.shape
        self.sequence_parallel = self.tp_size > 1 and layer.config.sequence_parallel
        self.weight, self.bias = layer.weight, layer.bias
        self.use_bias, self.te_return_bias = (
            layer.bias is not None,
            layer.skip_bias_add and layer.bias is not None,
        )
        if norm is not None:
            self.normalization, self.eps = "RMSNorm", norm.eps
            self.layer_norm_weight, self.layer_norm_bias = nn.Parameter(norm.weight.detach() - 1), None
            self.zero_centered_gamma = True

    def forward(self, x: torch.Tensor) -> Any:
        raise AssertionError("Transformer Engine is not here")


class Column(StandIn):
    pass


class NormColumn(StandIn):
    forward = StandIn.forward


class Row(StandIn):
    pass


for original, name in ((NormColumn, "TELayerNormColumnParallelLinear"), (Row, "TERowParallelLinear")):
    octavo.register(original, f"{OURS}{name}")
octavo.register(Column, f"{OURS}TEColumnParallelLinear")


def built(tp: int, **fields: Any) -> nn.Module:
    megatron.lay_out(tp=tp)
    model = megatron.gpt(megatron.config(add_bias_linear=True, **fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero at first
                parameter.fill_(0.1)
    return model


def with_stand_ins(model: nn.Module) -> nn.Module:
    for block in model.decoder.layers:
        attention, mlp = block.self_attention, block.mlp
        attention.linear_qkv = NormColumn(attention.linear_qkv, "column", block.input_layernorm)
        block.input_layernorm = IdentityOp()
        attention.linear_proj, mlp.linear_fc2 = Row(attention.linear_proj, "row"), Row(mlp.linear_fc2, "row")
        mlp.linear_fc1 = Column(mlp.linear_fc1, "column")
    return model


def trained(model: nn.Module) -> dict[str, Any]:
    octavo.quantize(model, octavo.FP8_DEFAULT_CFG, lambda m: megatron.run_schedule(m, BATCHES), quiet=True)
    losses = megatron.run_schedule(model, BATCHES)
    sum(model(**batch).mean() for batch in BATCHES).backward()
    block = model.decoder.layers[0]
    layers = (
        block.self_attention.linear_qkv,
        block.self_attention.linear_proj,
        block.mlp.linear_fc1,
        block.mlp.linear_fc2,
    )
    return {
        "losses": losses,
        "scales": [layer.input_quantizer.amax.clone() for layer in layers],
        "gradients": [layer.weight.grad for layer in layers],
    }


def same(fields: dict[str, Any]) -> dict[str, Any]:
    own, engine = trained(built(2, **fields)), trained(with_stand_ins(built(2, **fields)))
    return {
        "losses": [own["losses"], engine["losses"]],
        "scales": [
            torch.allclose(a, b, rtol=1e-6) for a, b in zip(own["scales"], engine["scales"], strict=True)
        ],
        "gradients": of_all_ranks(
            [
                torch.allclose(a, b, rtol=1e-4, atol=1e-6)
                for a, b in zip(own["gradients"], engine["gradients"], strict=True)
            ]
        ),
        "moved": [bool(gradient.abs().sum() > 0) for gradient in engine["gradients"]],
    }


def results() -> dict[str, Any]:
    return {"tensor": same({}), "sequence": same({"sequence_parallel": True}), "ranks": dist.get_world_size()}
