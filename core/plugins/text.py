"""Text as batches of tokens, through whichever adapter knows the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.core.plugins.hookspecs import DataRequest
from octavo.core.plugins.manager import plugins


def text_batches(
    tokenizer: Any,
    source: str | Path,
    num_samples: int = 512,
    sequence_length: int = 512,
    batch_size: int = 8,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """Tokenize text into batches for calibration or evaluation.

    Args:
        tokenizer: The model's tokenizer.
        source: A text file (one stream, cut into windows), a .jsonl file of documents with a `text` field, or
            what `datasets.load_dataset` takes, as `name` or `name#split`.
        num_samples: How many samples at most; `seed` chooses among more.
        sequence_length: Tokens per sample at most.
        batch_size: Samples per batch.
        seed: The same seed gives the same samples.

    Returns:
        Dicts of `input_ids` and `attention_mask`, int64 [batch, tokens], padded on the right.

    Raises:
        ConfigError: the source is missing, cannot be read or has no text, or a number is below 1.
        PluginError: no plugin knows the tokenizer.
    """
    request = DataRequest(str(source), num_samples, sequence_length, batch_size, seed)
    return plugins().text_batches(tokenizer, request)
