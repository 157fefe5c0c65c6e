"""Megatron-core models calibrated by two ranks that share their layers, beside the same models in one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import octavo
from helpers import megatron_cpu as megatron
from launched.common import joined, of_all_ranks, refusal, report

BATCHES = [megatron.batch(seed=seed) for seed in (3, 4)]


def loop(model: nn.Module) -> None:
    megatron.run_schedule(model, BATCHES)


def calibrated(preset: str, tp: int, moe: bool = False, **fields: Any) -> nn.Module:
    megatron.lay_out(tp=tp)
    model = megatron.gpt(megatron.config(**fields, **(megatron.moe_fields() if moe else {})))
    return octavo.quantize(model, getattr(octavo, preset), loop, quiet=True)


def part_of(whole: Tensor, name: str, rank: int) -> Tensor:
    """Return a rank's part of the tensor that one rank has: of rows, of gate and up, or of blocks of columns."""
    if whole.dim() == 0 or "weight_quantizer" not in name:
        return whole
    if "linear_fc1" in name:
        return torch.cat([half.chunk(2)[rank] for half in whole.chunk(2)])
    if "linear_qkv" in name or "output_layer" in name:
        return whole.chunk(2)[rank]
    return whole.chunk(2, 1)[rank] if whole.dim() == 2 else whole


def outcome(preset: str, **fields: Any) -> dict[str, Any]:
    """Compare a model of two ranks with that of one: its quantizers' state, and its losses."""
    one = calibrated(preset, 1)
    state = {n: b.clone() for n, b in one.named_buffers() if "quantizer" in n}
    losses = megatron.run_schedule(one, BATCHES)
    plain = [float(one(**batch).mean()) for batch in BATCHES[:0]]
    two = calibrated(preset, 2, **fields)
    rank = dist.get_rank()
    found = {n: b for n, b in two.named_buffers() if "quantizer" in n}
    differing = [
        n
        for n, b in found.items()
        if "weight_quantizer" in n and not torch.equal(b, part_of(state[n], n, rank))
    ]
    far = [
        n
        for n, b in found.items()
        if "weight_quantizer" not in n
        and not torch.allclose(b, part_of(state[n], n, rank), rtol=1e-6, atol=0)
    ]
    return {
        "names": len(found) if found.keys() == state.keys() else sorted(found.keys() ^ state.keys()),
        "weights": of_all_ranks(differing),
        "inputs": of_all_ranks(far),
        "losses": [losses, megatron.run_schedule(two, BATCHES)],
        "plain": plain,
    }


def main() -> None:
    with joined():
        megatron.on_cpu()
        report(
            fp8=outcome("FP8_DEFAULT_CFG"),
            fp8_sp=outcome("FP8_DEFAULT_CFG", sequence_parallel=True),
            nvfp4=outcome("NVFP4_DEFAULT_CFG"),
            kv=outcome("FP8_KV_CFG"),
        )


if __name__ == "__main__":
    main()
