"""`octavo eval`: perplexity of a checkpoint, quantized or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from octavo.cli import options, output
from octavo.core.evaluation.language import compare, perplexity
from octavo.core.evaluation.read_back import load_quantized
from octavo.core.plugins import plugins
from octavo.core.plugins.hookspecs import DataRequest


def evaluate(
    directory: Annotated[Path, typer.Argument(help="A checkpoint, quantized or not.", show_default=False)],
    text: Annotated[str, typer.Option(help="Text file, .jsonl of documents, or dataset.")],
    base: Annotated[Path | None, typer.Option(help="Checkpoint to compare with: adds KL and top-1.")] = None,
    num_samples: options.NumSamples = 512,
    seq_len: options.SequenceLength = 512,
    batch_size: options.BatchSize = 8,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure perplexity on --text; a quantized checkpoint is run with its weights and activations quantized."""
    source = directory if (directory / "tokenizer_config.json").is_file() or base is None else base
    tokenizer = plugins().load_tokenizer(source, trust_remote_code)
    batches = plugins().text_batches(tokenizer, DataRequest(text, num_samples, seq_len, batch_size, seed))
    model = _load(directory, trust_remote_code)
    result: dict[str, Any] = {"directory": str(directory), "text": text}
    if base is None:
        result["perplexity"] = perplexity(model, batches)
    else:
        result |= vars(compare(model, _load(base, trust_remote_code), batches))
    if as_json:
        output.print_json(result)
    else:
        output.print_table(str(directory), ("measure", "value"), list(result.items())[2:])


def _load(directory: Path, trust_remote_code: bool) -> nn.Module:
    if plugins().exporter_for(directory) is not None:
        return load_quantized(directory, trust_remote_code)
    return plugins().load_model(directory, None, trust_remote_code)
