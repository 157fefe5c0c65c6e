"""Hugging Face checkpoints imported at several layouts: their logits, and what is exported of them again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

import octavo
from helpers.megatron_checkpoints import FORMATS, LAYOUTS, TOKENS
from helpers.megatron_cpu import lay_out, on_cpu
from launched.common import ARGUMENTS, FOLDER, joined, of_all_ranks, refusal, report

on_cpu()
from octavo.adapters.megatron_core.conversion import (  # noqa: E402 (after Megatron-core was told where it runs)
    export_huggingface,
    import_huggingface,
    load_huggingface,
)

SHARD = 100_000


def outputs(model: Any, tokens: Tensor) -> Tensor | None:
    """Return the logits [batch, tokens, vocabulary] of the last stage, None on the others."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    rows, length = tokens.shape
    mask = torch.ones(length, length).triu(1).bool()[None, None]

    def step(_: Any, stage: Any) -> Any:
        output = stage(tokens, torch.arange(length).expand(rows, length), mask)
        return output, lambda found: (found.sum(), {"logits": found.detach()})

    found = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=None,
        model=[model],
        num_microbatches=1,
        seq_length=length,
        micro_batch_size=rows,
        forward_only=True,
    )
    if not found:
        return None
    own = found[0]["logits"].contiguous()
    parts = [torch.empty_like(own) for _ in range(parallel_state.get_tensor_model_parallel_world_size())]
    dist.all_gather(parts, own, group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, -1)


def largest_error(model: Any, folder: Path) -> float:
    """Return the largest difference to the logits of transformers, on every rank."""
    expected = load_file(folder / "logits.st")["logits"]
    found = outputs(model, TOKENS)
    worst = torch.zeros(()) if found is None else (found[..., : expected.shape[-1]] - expected).abs().max()
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return worst.item()


def imported(kind: str, layout: str) -> Any:
    lay_out(**LAYOUTS[layout])
    return import_huggingface(FOLDER / kind, make_vocab_size_divisible_by=4).eval()


def plain(kind: str, layout: str) -> float:
    model = imported(kind, layout)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    load_huggingface([model], FOLDER / kind)
    export_huggingface(model, FOLDER / kind, FOLDER / f"{kind}-{layout}", max_shard_bytes=SHARD)
    return largest_error(model, FOLDER / kind)


def quantized(kind: str, layout: str, name: str, exporter: str = "unified_hf") -> None:
    """Quantize and export; the last rank, which is in the last stage, writes the logits beside the checkpoint."""
    model = imported(kind, layout)
    octavo.quantize(model, FORMATS[name], lambda stage: outputs(stage, TOKENS), quiet=True)
    out = FOLDER / f"{kind}-{layout}-{name}-{exporter}"
    export_huggingface(model, FOLDER / kind, out, exporter, max_shard_bytes=SHARD, quiet=True)
    found = outputs(model, TOKENS)
    if found is not None and dist.get_rank() == dist.get_world_size() - 1:
        save_file({"logits": found.contiguous()}, f"{out}.st")


def perplexity(stories: Path, layout: str, name: str) -> float:
    """Return the perplexity of the bundled model on the tokens of the test, quantized with the first of them."""
    tokens = load_file(FOLDER / "stories.st")["tokens"]
    lay_out(**LAYOUTS[layout])
    model = import_huggingface(stories).eval()
    octavo.quantize(model, FORMATS[name], lambda stage: outputs(stage, tokens), quiet=True)
    logits = outputs(model, tokens)
    assert logits is not None  # of one stage
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return math.exp(losses)


def refusals() -> list[dict[str, str]]:
    """Return what every rank says of what cannot be done."""
    model = imported("llama", "tp2")
    (FOLDER / "full").mkdir(exist_ok=True)
    (FOLDER / "full" / "file").touch()
    dist.barrier()
    said = {"full": refusal(lambda: export_huggingface(model, FOLDER / "llama", FOLDER / "full"))}
    said["other"] = refusal(lambda: export_huggingface(model, FOLDER / "wide", FOLDER / "never"))
    said["load"] = refusal(lambda: load_huggingface(model, FOLDER / "wide"))
    octavo.quantize(model, FORMATS["rotated"], lambda stage: outputs(stage, TOKENS), quiet=True)
    said["rotated"] = refusal(lambda: export_huggingface(model, FOLDER / "llama", FOLDER / "never"))
    lay_out(tp=4)
    said["narrow"] = refusal(lambda: import_huggingface(FOLDER / "three_heads"))
    lay_out(ep=4)
    said["experts"] = refusal(lambda: import_huggingface(FOLDER / "six_experts"))
    return of_all_ranks(said)


def main() -> None:
    tasks = json.loads(ARGUMENTS[0])
    with joined():
        results = {
            "errors": {f"{kind} {layout}": plain(kind, layout) for kind, layout in tasks.get("plain", [])},
            "perplexity": [
                perplexity(Path(stories), *rest) for stories, *rest in tasks.get("perplexity", [])
            ],
        }
        for task in tasks.get("quantized", []):
            quantized(*task)
        if tasks.get("refusals"):
            results["refusals"] = refusals()
        report(**results)


if __name__ == "__main__":
    main()
