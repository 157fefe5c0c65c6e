"""What Octavo and plain Megatron-core say of models and checkpoints that do not fit."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import megatron.core as core
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.transformer.module import Float16Module
from torch import nn

import octavo
from helpers import megatron_cpu as megatron
from launched.common import FOLDER, of_all_ranks, refusal
from octavo.adapters import megatron_core
from octavo.core.modes import history
from octavo.core.modules import QuantModule

BATCHES = [megatron.batch()]
BLOCKS_OF_64 = {
    "quant_cfg": {
        "*weight_quantizer": {"num_bits": 4, "block_sizes": {-1: 64}},
        "default": {"enable": False},
    },
    "algorithm": "max",
}


def built(tp: int = 1, seed: int = 7, **fields: Any) -> nn.Module:
    megatron.lay_out(tp=tp, seed=seed)
    return megatron.gpt(megatron.config(**fields))


def quantized(tp: int = 1, config: Any = octavo.FP8_DEFAULT_CFG) -> nn.Module:
    return octavo.quantize(built(tp), config, lambda m: megatron.run_schedule(m, BATCHES), quiet=True)


def finalized() -> nn.Module:
    model = quantized()
    octavo.finalize(model, "unified_hf")
    return model


def sharded(model: nn.Module, content: dict[str, Any]) -> dict[str, Any]:
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return model.sharded_state_dict(metadata={**content, "dp_cp_group": group})


def plain_megatron(saved: nn.Module, directory: Path) -> dict[str, Any]:
    """Load a quantized checkpoint by Megatron-core alone."""
    model = built(tp=2, seed=99)
    content = dist_checkpointing.load_content_metadata(str(directory))
    model.load_state_dict(dist_checkpointing.load(sharded(model, content), str(directory)), strict=False)
    weights = dict(saved.named_parameters())
    asked = dist_checkpointing.load(sharded(model, content), str(directory), strict=StrictHandling.RETURN_ALL)
    return {
        "weights": all(torch.equal(weights[name], p) for name, p in model.named_parameters()),
        "left_out": sorted(key for keys in asked[1:] for key in keys if "_extra_state" not in key),
    }


def by_a_script(saved: nn.Module, directory: Path) -> dict[str, Any]:
    """Save and load as a script of Megatron-core's does, whose record has another length by then."""
    directory.mkdir(exist_ok=True)
    torch.distributed.barrier()
    dist_checkpointing.save(sharded(saved, {}), str(directory), content_metadata={"by": "a script"})
    loaded = megatron_core.load(built(tp=2, seed=98), directory)
    loaded.octavo_record.__dict__["model"] = nn.Module()  # an empty record
    again = dist_checkpointing.load(sharded(loaded, {}), str(directory))
    found = loaded.load_state_dict(again, strict=False)
    return {
        "wrong": [
            n
            for n in found.missing_keys + found.unexpected_keys
            if "extra_state" not in n and n != "content_metadata"
        ],
        "losses": [megatron.run_schedule(model, BATCHES) for model in (saved, loaded)],
    }


def with_setting(model: nn.Module, **settings: Any) -> nn.Module:
    for name, value in settings.items():
        setattr(model.config, name, value)
    return model


def versions(model: nn.Module) -> list[str]:
    """Return what is said of a Megatron-core that is too old, and of one that is too new."""
    texts = []
    module = core
    found = module.__version__
    for version in ("0.13.1", "0.99.0"):
        module.__version__ = version
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
            texts.append(refusal(lambda: octavo.plan(model, octavo.FP8_DEFAULT_CFG)) + said.getvalue())
    module.__version__ = found
    return texts


def results() -> dict[str, Any]:
    model = quantized(tp=2)
    quantized_folder, plain_folder, blocks = FOLDER / "quantized", FOLDER / "plain", FOLDER / "blocks"
    megatron_core.save(model, quantized_folder)
    overwritten = refusal(lambda: megatron_core.save(model, quantized_folder))
    megatron_core.save(model, quantized_folder, overwrite=True)
    found = {
        "overwritten": overwritten,
        "plain_megatron": plain_megatron(model, quantized_folder),
        "script": by_a_script(model, FOLDER / "script"),
        "modes": refusal(lambda: megatron_core.load(model, quantized_folder)),
        "still_quantized": len(history(model)),
    }
    original = built(tp=2)
    megatron_core.save(original, plain_folder)
    losses = megatron.run_schedule(original, BATCHES)
    found["from_plain"] = [
        losses,
        megatron.run_schedule(megatron_core.load(built(seed=97), plain_folder), BATCHES),
    ]
    megatron_core.save(quantized(config=BLOCKS_OF_64), blocks)
    shallow, wide, divided = built(num_layers=1), built(ffn_hidden_size=256), built(tp=2)
    few = built(**megatron.moe_fields(num_experts=2))
    found |= {
        "nothing": refusal(lambda: megatron_core.load(built(), FOLDER / "nothing")),
        "wrapped": refusal(
            lambda: octavo.quantize(
                Float16Module(megatron.config(bf16=True), built()), octavo.FP8_DEFAULT_CFG
            )
        ),
        "settings": refusal(lambda: octavo.plan(with_setting(built(), fp8="e4m3"), octavo.FP8_DEFAULT_CFG)),
        "packed": refusal(lambda: octavo.compress(quantized(), dialect="neutral")),
        "finalized": refusal(lambda: megatron_core.save(finalized(), FOLDER / "finalized")),
        "versions": versions(built()),
        "layers": of_all_ranks(refusal(lambda: megatron_core.load(shallow, quantized_folder))),
        "experts": refusal(lambda: megatron_core.load(few, quantized_folder)),
        "shapes": refusal(lambda: megatron_core.load(wide, quantized_folder)),
        "blocks": of_all_ranks(refusal(lambda: megatron_core.load(divided, blocks))),
    }
    left = [module for one in (shallow, wide, divided, few) for module in one.modules()]
    found["left_quantized"] = sorted(
        {type(module).__name__ for module in left if isinstance(module, QuantModule)}
    )
    return found
