"""What the scripts of this folder share: arguments, joining the other ranks, data, and Megatron-core's schedule."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from on_cpu import on_cpu
from torch import Tensor, nn

import octavo
from octavo.adapters.megatron_core import schedule_loop

DATA = Path(__file__).parents[1] / "data"
TOKENS, ROWS = 128, 4
FORMATS = {
    "fp8": octavo.FP8_DEFAULT_CFG,
    "nvfp4": octavo.NVFP4_DEFAULT_CFG,
    "nvfp4_weights": octavo.W4A16_NVFP4_CFG,
}


def arguments(description: str | None, **extra: Any) -> argparse.Namespace:
    """Read the command line; `extra` are further options, {name: default}."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--model", type=Path, default=DATA / "stories260k", help="folder of a Hugging Face model"
    )
    parser.add_argument("--tp", type=int, default=1, help="tensor parallel ranks")
    parser.add_argument("--pp", type=int, default=1, help="pipeline stages")
    parser.add_argument("--format", choices=FORMATS, default="fp8")
    for name, default in extra.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


@contextmanager
def joined(tp: int, pp: int) -> Iterator[int]:
    """Join the ranks that torchrun started, divided as asked; yield this one's number."""
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        on_cpu()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("nccl" if on_gpus else "gloo")
    parallel_state.initialize_model_parallel(tp, pp)
    torch.manual_seed(0)
    model_parallel_cuda_manual_seed(0)
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def windows(model_dir: Path, file: str, number: int) -> list[Tensor]:
    """Return so many batches of tokens, [ROWS, TOKENS] each, from the bundled texts one after the other."""
    tokenizer = octavo.plugins().load_tokenizer(model_dir, False)
    batches = octavo.text_batches(tokenizer, DATA / file, num_samples=512, sequence_length=512, batch_size=1)
    stream = torch.cat([batch["input_ids"][batch["attention_mask"].bool()] for batch in batches])
    stream = stream[: len(stream) // (ROWS * TOKENS) * ROWS * TOKENS]
    return list(stream.view(-1, ROWS, TOKENS)[:number])


def forward_step(batches: Iterator[Tensor], model: nn.Module) -> Any:
    """Return a batch's losses and what makes one number of them, as Megatron-core's schedule takes it."""
    tokens = next(batches).to(next(model.parameters()).device)
    positions = torch.arange(TOKENS, device=tokens.device).expand(ROWS, TOKENS)
    mask = (
        torch.ones(TOKENS, TOKENS, device=tokens.device).triu(1).bool()[None, None]
    )  # True where nothing is seen
    output = model(tokens, positions, mask, labels=tokens.roll(-1, 1))

    def loss(losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mean = losses[:, :-1].mean()  # nothing follows the last token
        shown = (
            mean.detach().clone()
        )  # of which the schedule does not divide the memory by the number of batches
        return mean, {"loss": shown}

    return output, loss


def calibration(batches: list[Tensor]) -> Any:
    """Return the data for `octavo.quantize`."""
    return schedule_loop(forward_step, batches, len(batches), TOKENS, ROWS)


def run(model: nn.Module, batches: list[Tensor], forward_only: bool = True) -> float:
    """Run batches through the stages of the model; return the mean loss, on every rank."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    outputs = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=TOKENS,
        micro_batch_size=ROWS,
        forward_only=forward_only,
    )
    losses = [output["loss"] for output in outputs] or [torch.zeros(())]
    mean = torch.stack(losses).mean().to(next(model.parameters()).device)
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(mean, last, group=parallel_state.get_pipeline_model_parallel_group())
    return float(mean)


@torch.no_grad()
def perplexity(model: nn.Module, batches: list[Tensor]) -> float:
    """Return exp of the mean loss."""
    return math.exp(run(model.eval(), batches))
