"""Train an imported model with its quantized weights inside Megatron-core, and export what it has become.

Run: torchrun --nproc-per-node 2 examples/megatron/qat.py --tp 2 --format nvfp4_weights --steps 20
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from common import FORMATS, arguments, calibration, joined, perplexity, run, windows
from torch import nn

import octavo
from octavo.adapters.megatron_core.conversion import export_huggingface, import_huggingface


def main() -> None:
    options = arguments(__doc__, steps=20, out="")
    with joined(options.tp, options.pp) as rank:
        batches, texts = (
            windows(options.model, "calibration.jsonl", 4),
            windows(options.model, "test.jsonl", 4),
        )
        model = import_huggingface(options.model).eval()
        octavo.quantize(model, FORMATS[options.format], calibration(batches), quiet=rank > 0)
        before = perplexity(model, texts)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        for step in range(options.steps):
            model.train()
            optimizer.zero_grad()
            run(model, [batches[step % len(batches)]], forward_only=False)
            add_up_gradients(model)
            optimizer.step()
        after = perplexity(model, texts)
        with tempfile.TemporaryDirectory() as temporary:
            report = export_huggingface(
                model, options.model, Path(options.out or temporary) / "trained", overwrite=True
            )
        if rank == 0:
            print(
                f"perplexity in {options.format} {before:.4f}, trained {after:.4f}; {report.num_tensors} tensors"
            )


def add_up_gradients(model: nn.Module) -> None:
    """Average gradients over data parallel ranks, and add those of an embedding that two stages share.

    Megatron-core's own `finalize_model_grads` does, for models in its `DistributedDataParallel`.
    """
    from megatron.core import parallel_state

    data = parallel_state.get_data_parallel_group()
    for parameter in model.parameters():
        if parameter.grad is not None and data.size() > 1:
            dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM, group=data)
            parameter.grad /= data.size()
    is_shared = model.share_embeddings_and_output_weights and (model.pre_process or model.post_process)
    if is_shared and parallel_state.get_pipeline_model_parallel_world_size() > 1:
        dist.all_reduce(
            model.shared_embedding_or_output_weight().grad, group=parallel_state.get_embedding_group()
        )


if __name__ == "__main__":
    main()
