"""Text as token batches, from local files or `datasets`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from octavo.core.errors import FOREIGN_FAILURES, ConfigError
from octavo.core.plugins.hookspecs import DataRequest


def read_batches(tokenizer: Any, request: DataRequest) -> list[dict[str, torch.Tensor]]:
    """Tokenize text and pack it into batches.

    A document is one sample, with the special tokens that the tokenizer adds, cut to `sequence_length`. A plain
    text file is one stream, cut into windows of `sequence_length` that follow each other. Where there are more
    samples than asked for, `seed` chooses. Samples are sorted by length, so that batches need little padding,
    which is on the right and masked.

    Returns:
        Dicts of `input_ids` and `attention_mask`, int64 [batch, tokens].

    Raises:
        ConfigError: the source is missing, cannot be read, is empty, or yields no sample of two tokens.
    """
    path = Path(request.source)
    if path.is_file() and path.suffix not in (".json", ".jsonl"):
        samples = _windows(tokenizer, _read(path), request.sequence_length)
    else:
        samples = _document_samples(tokenizer, read_documents(request.source), request)
    samples = [ids for ids in samples if len(ids) > 1]
    if not samples:
        raise ConfigError(f"{request.source} yields no sample of two tokens or more")
    if len(samples) > request.num_samples:
        samples = random.Random(request.seed).sample(samples, request.num_samples)
    samples = sorted(samples, key=len)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    starts = range(0, len(samples), request.batch_size)
    return [_batch(samples[start : start + request.batch_size], pad) for start in starts]


def _document_samples(tokenizer: Any, texts: list[str], request: DataRequest) -> list[list[int]]:
    """Tokenize documents until there are as many samples as asked for; of more documents, `seed` chooses."""
    order = list(range(len(texts)))
    if len(texts) > request.num_samples:
        chosen = random.Random(request.seed).sample(order, request.num_samples)
        order = [*chosen, *sorted(set(order) - set(chosen))]  # the others in case some are too short
    samples: list[list[int]] = []
    for index in order:
        ids = tokenizer(texts[index], verbose=False)["input_ids"][: request.sequence_length]
        if len(ids) > 1:
            samples.append(ids)
        if len(samples) == request.num_samples:
            break
    return samples


def _windows(tokenizer: Any, text: str, length: int) -> list[list[int]]:
    """Cut a text into windows of `length` tokens, each beginning with the BOS token where the model uses one."""
    empty = tokenizer("")["input_ids"]
    prefix = empty[:1] if empty[:1] == [tokenizer.bos_token_id] else []
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    step = length - len(prefix)
    return [prefix + ids[start : start + step] for start in range(0, len(ids), step)] if step else []


def read_documents(source: str) -> list[str]:
    """Return the documents of a .jsonl file or a dataset.

    Raises:
        ConfigError: the source is missing or cannot be read, a document has no text, or there is none at all.
    """
    path = Path(source)
    if path.suffix in (".txt", ".json", ".jsonl") and not path.exists():
        raise ConfigError(f"{path} does not exist")
    if path.is_file():
        documents = _file_documents(path)
    else:
        documents = _dataset_documents(source)
    documents = [text.strip() for text in documents if text.strip()]
    if not documents:
        raise ConfigError(f"{source} has no text")
    return documents


def _file_documents(path: Path) -> list[str]:
    if path.suffix == ".json":
        raise ConfigError(f"{path}: write one JSON object per line, with a 'text' field, to a .jsonl file")
    lines = _read(path).split("\n")  # splitlines would also split at separators that JSON strings may hold
    return [_text_of(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _text_of(line: str, path: Path, number: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}, line {number}: expected a JSON object with a 'text' field") from error
    if not isinstance(text, str):
        raise ConfigError(f"{path}, line {number}: expected a string as 'text', found {text!r}")
    return text


def _dataset_documents(source: str) -> list[str]:
    """Read the `text` column of a dataset's train split, or of the split after `#` in `name#split`."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ConfigError(f"{source} is no file; to read it as a dataset, pip install datasets") from error
    name, _, split = source.partition("#")
    try:
        dataset: Any = load_dataset(name, split=split or "train")
    except (*FOREIGN_FAILURES, DatasetsError) as error:
        raise ConfigError(f"{source} is no file, and no dataset that can be loaded: {error}") from error
    if "text" not in dataset.column_names:
        raise ConfigError(f"dataset {name} has no 'text' column, found {dataset.column_names}")
    texts = list(dataset["text"])
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise ConfigError(f"dataset {source}, row {number}: expected a string as 'text', found {text!r}")
    return texts


def _batch(samples: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(ids) for ids in samples)
    return {
        "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids in samples]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in samples]),
    }
