"""Options that several commands share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from octavo.core.config import load_config, load_recipe, merge_configs, with_block_size
from octavo.core.config.presets import Config
from octavo.core.errors import ConfigError

Model = Annotated[Path, typer.Argument(help="Folder of a Hugging Face checkpoint.", show_default=False)]
Preset = Annotated[str | None, typer.Option(help="Preset name; `octavo presets` lists them.")]
Kv = Annotated[str | None, typer.Option(help="Preset for the KV cache, joined to the other one.")]
Recipe = Annotated[Path | None, typer.Option(help="YAML recipe instead of a preset.")]
BlockSize = Annotated[int | None, typer.Option(help="Block length of integer formats.")]
Target = Annotated[
    str | None,
    typer.Option(
        help="Engine that will serve it (vllm, sglang, trtllm, transformers): what it cannot load is refused, and "
        "the checkpoint is written as it loads it best."
    ),
]
TensorParallel = Annotated[
    int,
    typer.Option(
        "--tp", help="Tensor-parallel size it will be served with: what cannot be split is refused."
    ),
]
RanksOfLayers = Annotated[
    int, typer.Option("--tp", help="TensorRT-LLM: ranks that divide each layer (tensor parallel).")
]
Stages = Annotated[
    int, typer.Option("--pp", help="TensorRT-LLM: stages of consecutive layers (pipeline parallel).")
]
ExpertGroups = Annotated[
    int, typer.Option("--ep", help="TensorRT-LLM: groups of ranks that divide the experts of a layer.")
]
Dtype = Annotated[
    str | None, typer.Option(help="Load as float32, bfloat16 or float16; default: as the config says.")
]
CalibrationData = Annotated[
    str | None,
    typer.Option("--calib-data", help="Text file, .jsonl of documents, or dataset (name or name#split)."),
]
StatsBudget = Annotated[
    str | None,
    typer.Option(help="Memory for statistics, as 500MB or 2GiB: over it, the data is run several times."),
]
SkipBadBatches = Annotated[
    bool,
    typer.Option("--skip-bad-batches", help="Leave out batches with NaN or infinity, instead of refusing."),
]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="Block by block, for models larger than memory; the bytes are the same."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with a --stream run that was interrupted; begin one if there is none."
    ),
]
ActivationBudget = Annotated[
    str, typer.Option(help="Memory for activations of --stream, as 4GB; the rest is read from disk.")
]
LogJson = Annotated[
    Path | None, typer.Option("--log-json", help="File that gets a JSON line for each block of --stream.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is not empty.")]
NumSamples = Annotated[int, typer.Option(min=1, help="Samples at most.")]
SequenceLength = Annotated[int, typer.Option("--seq-len", min=2, help="Tokens per sample at most.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Samples per batch.")]
Seed = Annotated[int, typer.Option(help="Chooses the samples.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress and no summary.")]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def config_from(preset: str | None, kv: str | None, recipe: Path | None, block_size: int | None) -> Config:
    """Return the config that the options describe.

    Raises:
        ConfigError: neither or both of preset and recipe are given, or a name is unknown.
    """
    if (preset is None) == (recipe is None):
        raise ConfigError("give either --preset NAME or --recipe FILE")
    config = load_recipe(recipe) if recipe is not None else load_config(str(preset))
    if kv is not None:
        config = merge_configs(config, kv)
    return config if block_size is None else with_block_size(config, block_size)


def dtype_from(name: str | None) -> torch.dtype | None:
    """Return the dtype called `name`, or None for the one that the model's config says.

    Raises:
        ConfigError: models are not loaded in a dtype of that name.
    """
    if name is None:
        return None
    if name not in _DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; known: {', '.join(_DTYPES)}")
    return _DTYPES[name]
