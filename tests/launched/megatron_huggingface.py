"""Hugging Face checkpoints imported at several layouts: logits, and exported again, every tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from helpers.megatron_checkpoints import LAYOUTS, TOKENS
from helpers.megatron_cpu import lay_out, on_cpu
from launched.common import ARGUMENTS, FOLDER, joined, report

on_cpu()


def logits(model: Any, vocabulary: int) -> Any:
    """Return the logits of `TOKENS` [2, 16, vocabulary] on the last stage, None elsewhere."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    rows, tokens = TOKENS.shape
    mask = torch.ones(tokens, tokens).triu(1).bool()[None, None]

    def step(_: Any, stage: Any) -> Any:
        output = stage(TOKENS, torch.arange(tokens).expand(rows, tokens), mask)
        return output, lambda found: (found.sum(), {"logits": found.detach()})

    outputs = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=None,
        model=[model],
        num_microbatches=1,
        seq_length=tokens,
        micro_batch_size=rows,
        forward_only=True,
    )
    if not outputs:
        return None
    own = outputs[0]["logits"].contiguous()
    parts = [torch.empty_like(own) for _ in range(parallel_state.get_tensor_model_parallel_world_size())]
    dist.all_gather(parts, own, group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, -1)[..., :vocabulary]


def largest_error(model: Any, folder: Path) -> float:
    """Return the largest difference to the logits of transformers, on every rank."""
    expected = load_file(folder / "logits.st")["logits"]
    found = logits(model, expected.shape[-1])
    worst = torch.zeros(()) if found is None else (found - expected).abs().max().detach()
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return worst.item()


def main() -> None:
    from octavo.adapters.megatron_core.conversion.exporting import export_plain
    from octavo.adapters.megatron_core.conversion.importing import import_huggingface

    results: dict[str, float] = {}
    with joined():
        for argument in ARGUMENTS:
            kind, layout = argument.split(":")
            lay_out(**LAYOUTS[layout])
            model = import_huggingface(FOLDER / kind, make_vocab_size_divisible_by=4).eval()
            results[argument] = largest_error(model, FOLDER / kind)
            export_plain(model, FOLDER / kind, FOLDER / f"{kind}-{layout}", max_shard_bytes=100_000)
        report(errors=results)


if __name__ == "__main__":
    main()
