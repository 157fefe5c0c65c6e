"""Distributed checkpoints of quantized Megatron-core models: saved by one layout of ranks, loaded by another."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from helpers import megatron_cpu as megatron
from launched.common import FOLDER, of_all_ranks
from octavo.adapters import megatron_core
from octavo.core.modes import history

BATCHES = [megatron.batch(seed=seed) for seed in (3, 4)]
OFF = {"quantizer_name": "*", "enable": False}
INT8_ROWS = {"num_bits": 8, "axis": 0}
CONFIGS = {
    "fp8": octavo.FP8_DEFAULT_CFG,
    "nvfp4": octavo.NVFP4_DEFAULT_CFG,
    "smoothquant": octavo.INT8_SMOOTHQUANT_CFG,
    "int8": {
        "quant_cfg": [OFF, {"quantizer_name": "*weight_quantizer", "cfg": INT8_ROWS}],
        "algorithm": "max",
    },
    "int4": {
        "quant_cfg": [
            OFF,
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4, "block_sizes": {-1: 16}}},
        ],
        "algorithm": "max",
    },
    "some": {  # layers differ, and so do attention and the layers around it
        "quant_cfg": [
            OFF,
            {"quantizer_name": "*layers.1.mlp*weight_quantizer", "cfg": INT8_ROWS},
            {"quantizer_name": "*layers.0.*[kv]_bmm_quantizer", "cfg": {"num_bits": (4, 3)}},
        ],
        "algorithm": "max",
    },
}


def plain(layout: dict[str, int], seed: int, tied: bool = False, **fields: Any) -> nn.Module:
    megatron.lay_out(**layout, seed=seed)
    return megatron.gpt(megatron.config(**fields), tied=tied)


def quantized(layout: dict[str, int], config: str, **fields: Any) -> nn.Module:
    model = plain(layout, 7, **fields)
    if config == "some" and layout.get("pp") == 2:  # a stage numbers its layers from 0
        renamed = json.dumps(CONFIGS[config]).replace(
            "layers.1", "layers.0" if model.post_process else "none"
        )
        return octavo.quantize(model, json.loads(renamed), loop, quiet=True)
    return octavo.quantize(model, copy.deepcopy(CONFIGS[config]), loop, quiet=True)


def loop(model: nn.Module) -> None:
    megatron.run_schedule(model, BATCHES)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def differing(found: dict[str, Tensor], expected: dict[str, Tensor], inputs: float = 0) -> list[str]:
    """Return the names of tensors that are not the same, those of inputs within a relative tolerance."""
    both = {name: inputs if "input_quantizer" in name else 0 for name in expected if name in found}
    wrong = [n for n, rtol in both.items() if not torch.allclose(found[n], expected[n], rtol=rtol, atol=0)]
    return wrong + sorted(found.keys() ^ expected.keys())


def trip(
    name: str, config: str, saved: dict[str, int], loaded: dict[str, int], **options: Any
) -> dict[str, Any]:
    """Save in one layout, load in another and save there, load in the first again."""
    metadata = options.pop("metadata", None)
    fields = {**(megatron.moe_fields() if options.pop("moe", False) else {}), **options}
    source = quantized(saved, config, **fields)
    losses, state = megatron.run_schedule(source.eval(), BATCHES), state_of(source)
    megatron_core.save(source, FOLDER / f"{name}.1", metadata)
    other = megatron_core.load(plain(loaded, 99, **fields), FOLDER / f"{name}.1")
    there, state_there = megatron.run_schedule(other.eval(), BATCHES), state_of(other)
    megatron_core.save(other, FOLDER / f"{name}.2", metadata)
    back = megatron_core.load(plain(saved, 98, **fields), FOLDER / f"{name}.2")
    only_tp = not {"pp", "ep"} & (saved.keys() | loaded.keys())  # which draws the same weights
    expected = (
        state_of(quantized(loaded, config, **fields)) if only_tp and config != "smoothquant" else state_there
    )
    return {
        "tensors": len(state),
        "modes": [record.mode for record in history(back)],
        "back": of_all_ranks(differing(state_of(back), state)),
        "as_calibrated_there": of_all_ranks(differing(state_there, expected, inputs=1e-6)),
        "losses": [max(of_all_ranks(losses)), max(of_all_ranks(there))],  # other stages have none
    }


TWO, PIPE, ONE, EXPERTS = {"tp": 2}, {"pp": 2}, {}, {"ep": 2}


def results() -> dict[str, Any]:
    if torch.distributed.get_world_size() == 4:
        both = {"tp": 2, "pp": 2}
        return {
            "tp2pp2_tp2": trip("tp2pp2_tp2", "fp8", both, TWO),
            "tp2ep2_pp2": trip("tp2ep2_pp2", "fp8", {"tp": 2, "ep": 2, "etp": 1}, PIPE, moe=True),
        }
    singles = {"singleton_local_shards": True}
    return {
        "tp2_tp1": trip("tp2_tp1", "fp8", TWO, ONE),
        "tp1_tp2": trip("tp1_tp2", "int8", ONE, TWO),
        "tp1_tp2_blocks": trip("tp1_tp2_blocks", "int4", ONE, TWO, metadata=singles),
        "pp2_tp2_factors": trip("pp2_tp2_factors", "smoothquant", PIPE, TWO),
        "pp2_tp2": trip("pp2_tp2", "nvfp4", PIPE, TWO),
        "tp2_pp2_some": trip("tp2_pp2_some", "some", TWO, PIPE),
        "ep2_tp1": trip("ep2_tp1", "fp8", EXPERTS, ONE, moe=True),
        "ep2_pp2": trip("ep2_pp2", "int8", EXPERTS, PIPE, moe=True, metadata=singles),
    }
