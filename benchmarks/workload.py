"""The 29 M parameter model and the data of the cost benchmarks; imports nothing of Octavo, so that peers use it."""

from __future__ import annotations

import copy
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SAMPLES, TOKENS, VOCABULARY = 16, 512, 8192


class Case(NamedTuple):
    """What is measured: a preset, with another block length or algorithm."""

    preset: str
    block: int | None = None
    algorithm: Any = None
    peer: bool = True

    def config(self, preset: dict[str, Any]) -> dict[str, Any]:
        """Return the preset, changed; any tool's that has ModelOpt's form."""
        changed = copy.deepcopy(preset)
        for entry in changed["quant_cfg"]:
            if self.block and entry["quantizer_name"] == "*weight_quantizer":
                entry["cfg"]["block_sizes"][-1] = self.block
        return changed if self.algorithm is None else changed | {"algorithm": self.algorithm}


CASES = {
    "FP8": Case("FP8_DEFAULT_CFG"),
    "INT8": Case("INT8_DEFAULT_CFG"),
    "INT8 SmoothQuant": Case("INT8_SMOOTHQUANT_CFG"),
    "NVFP4": Case("NVFP4_DEFAULT_CFG"),
    "NVFP4 SVDQuant": Case("NVFP4_SVDQUANT_DEFAULT_CFG"),
    "INT4 g32 AWQ-lite": Case("INT4_AWQ_CFG", 32),
    "INT4 g32 AWQ-full": Case("INT4_AWQ_CFG", 32, {"method": "awq_full", "alpha_step": 0.1}),
    "INT4 g32 GPTQ": Case("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32, "gptq"),
    "NVFP4 MSE": Case("NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG"),
    "NVFP4 local Hessian": Case("NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG"),
    "INT4 g32 HQQ": Case("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32, "hqq", peer=False),
    "INT4 g32 compensate": Case("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32, "compensate", peer=False),
    "INT4 g32 learned rounding": Case("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32, "learned_rounding", peer=False),
}
Quantize = Callable[[nn.Module, list[Tensor]], object]


def model(num_layers: int = 8) -> nn.Module:
    """A random fp32 Llama: hidden 512, 8 heads (4 for keys and values), feed-forward 1376."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=TOKENS,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def data() -> list[Tensor]:
    """16 samples of 512 random tokens, one per batch."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, VOCABULARY, (1, TOKENS), generator=generator) for _ in range(SAMPLES)]


@torch.no_grad()
def forward_loop(target: nn.Module, batches: list[Tensor]) -> None:
    """Run the data through a model."""
    for ids in batches:
        target(ids)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call, of this process and all its threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(tool: str, case: str, quantize: Quantize, repeats: int, forward: bool) -> None:
    """Print a row as JSON: the cost of quantizing fresh copies, in plain passes, and of a quantized pass.

    `quantize` changes the model that it is given. What the first call of a tool imports and keeps is left out: it
    quantizes a model of one layer before. Megabytes are those by which a call raises the most memory that the
    process ever had, so that a process measures one case.
    """
    base, batches = model(), data()
    quantize(model(num_layers=1), batches)
    forward_loop(base, batches[:1])
    passes, seconds, forwards, megabytes = [], [], [], []
    for _ in range(repeats):
        plain = cpu_seconds(lambda: forward_loop(base, batches))
        quantized = copy.deepcopy(base)
        before = peak_megabytes()
        seconds.append(cpu_seconds(lambda: quantize(quantized, batches)))  # noqa: B023
        passes.append(seconds[-1] / plain)
        megabytes.append(peak_megabytes() - before)
        if forward:
            forwards.append(cpu_seconds(lambda: forward_loop(quantized, batches)) / plain)  # noqa: B023
    row: dict[str, Any] = {"tool": tool, "case": case, "repeats": repeats, "megabytes": max(megabytes)}
    row |= {"passes": statistics.median(passes), "passes_range": [min(passes), max(passes)]}
    row |= {"cpu_seconds": statistics.median(seconds)}
    print(json.dumps(row | ({"forward_passes": statistics.median(forwards)} if forwards else {})))


def peak_megabytes() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
