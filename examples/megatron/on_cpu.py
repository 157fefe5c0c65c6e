"""Megatron-core on a machine without GPUs: it asks CUDA for its device, streams and random state, and gets the CPU's.

The other scripts of this folder call `on_cpu` where torch finds no GPU. Nothing here is needed with GPUs.
"""

from __future__ import annotations

import warnings
from typing import Any
from unittest.mock import MagicMock

import torch
from torch.overrides import TorchFunctionMode


class CudaToCpu(TorchFunctionMode):
    """Makes tensors on the CPU that are asked for on CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return args[0] if func is torch.Tensor.cuda else func(*args, **kwargs)


def on_cpu() -> None:
    """Change torch and Megatron-core in this process, before either is used."""
    warnings.filterwarnings("ignore", module=r"megatron\..*")  # of what is not installed without GPUs
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *_, **__: None
    torch.cuda.Stream = torch.cuda.Event = torch.cuda.stream = torch.cuda.current_stream = MagicMock()
    torch.cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    CudaToCpu().__enter__()
