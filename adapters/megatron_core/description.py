"""The blocks of a Megatron-core model, as one rank has them."""

from __future__ import annotations

from torch import nn

from octavo.core.model.description import BlockDescription, ModelDescription

_ROLES = {
    "input_layernorm": "norm.attention",
    "self_attention.linear_qkv": "attention.qkv",
    "self_attention.linear_proj": "attention.out",
    "pre_mlp_layernorm": "norm.mlp",
    "mlp.linear_fc1": "mlp.fc1",
    "mlp.linear_fc2": "mlp.fc2",
    "mlp.router": "moe.router",
}
_LATENT = (("linear_q_down_proj", "linear_kv_down_proj"), ("linear_q_proj", "linear_kv_down_proj"))


def description_of(model: nn.Module) -> ModelDescription:
    """Return the blocks of `model`, those of this rank's pipeline stage; fused layers are one layer each."""
    from megatron.core.transformer.transformer_layer import TransformerLayer

    blocks = [(n, module) for n, module in model.named_modules() if isinstance(module, TransformerLayer)]
    shared = [group for name, block in blocks for group in _same_input(name, block)]
    return ModelDescription("megatron-core", tuple(_block(*item) for item in blocks), {}, tuple(shared))


def _block(name: str, block: nn.Module) -> BlockDescription:
    layers = dict(block.named_modules())
    roles = {role: f"{name}.{layer}" for layer, role in _ROLES.items() if layer in layers}
    return BlockDescription(name, "moe" if "mlp.router" in layers else "attention", roles)


def _same_input(name: str, block: nn.Module) -> list[tuple[str, ...]]:
    """Return the down projections of latent attention, which read one tensor."""
    layers = dict(block.named_modules())
    names = [tuple(f"self_attention.{layer}" for layer in pair) for pair in _LATENT]
    return [
        tuple(f"{name}.{layer}" for layer in pair) for pair in names if all(layer in layers for layer in pair)
    ]
