"""Small models to export, and their checkpoints."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

import octavo

SIZES = {
    "hidden_size": 128,  # q and o are one 128x128 block, the MLP's weights are two
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLP = "model.layers.0.mlp.down_proj"
# Every preset that this version can run, and the names by which its checkpoints call the layers' formats.
ALGORITHMS = {
    "FP8_DEFAULT_CFG": "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG": "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG": "fp8_pb_wo",
    "INT8_DEFAULT_CFG": "W8A8_SQ_PER_CHANNEL",
    "INT8_WEIGHT_ONLY_CFG": "W8A16",
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG": "W4A16_AWQ",
    "NVFP4_DEFAULT_CFG": "NVFP4",
    "NVFP4_MLP_ONLY_CFG": "NVFP4",
    "NVFP4_OMLP_ONLY_CFG": "NVFP4",
    "W4A16_NVFP4_CFG": "W4A16_NVFP4",
    "NVFP4_MLP_WEIGHT_ONLY_CFG": "W4A16_NVFP4",
    "W4A8_NVFP4_FP8_CFG": "W4A8_NVFP4_FP8",
    "MXFP8_DEFAULT_CFG": "MXFP8",
    "MXFP6_DEFAULT_CFG": "MXFP6",
    "MXFP4_DEFAULT_CFG": "mxfp4",
    "MXINT8_DEFAULT_CFG": "MXINT8",
    "MXFP4_MLP_WEIGHT_ONLY_CFG": "W4A16_MXFP4",
    "W4A8_MXFP4_FP8_CFG": "W4A8_MXFP4_FP8",
    "MAMBA_MOE_FP8_AGGRESSIVE_CFG": "FP8",
    "MAMBA_MOE_FP8_CONSERVATIVE_CFG": "FP8",
    "MAMBA_MOE_NVFP4_AGGRESSIVE_CFG": "NVFP4",
    "MAMBA_MOE_NVFP4_CONSERVATIVE_CFG": "NVFP4",
}
Config = str | Mapping[str, Any]


def plain_model(dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def tokens() -> Tensor:
    return torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))


def quantized(config: Config, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    return octavo.quantize(plain_model(dtype, **changes), config, [tokens()], quiet=True)


def export(model: nn.Module, directory: Path, **options: Any) -> Path:
    """Export and return the folder of the checkpoint."""
    octavo.export_hf_checkpoint(model, export_dir=directory, quiet=True, **options)
    return directory


def tensors_of(directory: Path) -> dict[str, Tensor]:
    return {
        name: value
        for file in sorted(directory.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def json_of(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder; of a report, without what the run cost."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(_without_cost(path)).hexdigest() for path in files
    }


def _without_cost(path: Path) -> bytes:
    if path.name == "report.json":
        return json.dumps({**json_of(path), "cost": None}).encode()
    data = path.read_bytes()
    return re.sub(rb"<dd class=cost>[^<]*</dd>", b"", data) if path.name == "report.html" else data


def with_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Change the tensors of a checkpoint on disk, as a damaged or foreign writer would have left them."""
    (directory / "octavo_manifest.json").unlink(missing_ok=True)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def with_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json_of(path)
    change(data)
    path.write_text(json.dumps(data))


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, dtype and shape included."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(
        first.contiguous().flatten().view(torch.uint8), second.contiguous().flatten().view(torch.uint8)
    )
