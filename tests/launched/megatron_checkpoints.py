"""Distributed checkpoints of quantized Megatron-core models: saved by one layout of ranks, loaded by another."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import octavo
from helpers import megatron_cpu as megatron
from launched.common import FOLDER, joined, of_all_ranks, refusal, report
from octavo.adapters import megatron_core

BATCHES = [megatron.batch(seed=seed) for seed in (3, 4)]


def model_of(layout: dict[str, int], seed: int = 7, **fields: Any) -> nn.Module:
    megatron.lay_out(**layout, seed=seed)
    return megatron.gpt(megatron.config(**fields))


def quantized(layout: dict[str, int], preset: str, **fields: Any) -> nn.Module:
    model = model_of(layout, **fields)
    return octavo.quantize(
        model, getattr(octavo, preset), lambda m: megatron.run_schedule(m, BATCHES), quiet=True
    )


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}


def round_trip(preset: str, saved: dict[str, int], loaded: dict[str, int], **fields: Any) -> dict[str, Any]:
    """Save in one layout, load in another and save there, load in the first again: bytes and losses."""
    name = f"{preset}-{saved}-{loaded}"
    source = quantized(saved, preset, **fields)
    losses, state = megatron.run_schedule(source, BATCHES), state_of(source)
    megatron_core.save(source, FOLDER / f"{name}.1")
    other = megatron_core.load(model_of(loaded, seed=99, **fields), FOLDER / f"{name}.1")
    there = megatron.run_schedule(other, BATCHES)
    megatron_core.save(other, FOLDER / f"{name}.2")
    back = megatron_core.load(model_of(saved, seed=98, **fields), FOLDER / f"{name}.2")
    again = state_of(back)
    differing = [n for n in state if n not in again or not torch.equal(state[n], again[n])]
    return {
        "differing": of_all_ranks(differing + sorted(again.keys() - state.keys())),
        "losses": of_all_ranks(losses),
        "there": of_all_ranks(there),
        "calibrated": all(
            q.calibrated for n, q in octavo.core.modules.tensor_quantizers(back) if q.enabled and q.spec.state
        ),
        "tensors": len(state),
    }


def main() -> None:
    with joined():
        megatron.on_cpu()
        tp, pp, one = {"tp": 2}, {"pp": 2}, {}
        report(
            tp_to_one=round_trip("FP8_DEFAULT_CFG", tp, one),
            pp_to_tp=round_trip("NVFP4_DEFAULT_CFG", pp, tp),
        )


if __name__ == "__main__":
    main()
