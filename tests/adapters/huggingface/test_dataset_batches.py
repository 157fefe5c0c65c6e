"""Datasets through `datasets.load_dataset`, from local files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer

import octavo
from octavo.core.errors import ConfigError

SPLITS = {"train": ["Once upon a time", "There was a dog"], "test": ["Lily and the cat"]}


@pytest.fixture(scope="module")
def tokenizer(stories: Path) -> Any:
    return AutoTokenizer.from_pretrained(stories)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "my dataset"
    directory.mkdir()
    for split, texts in SPLITS.items():
        (directory / f"{split}.json").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return directory


@pytest.mark.parametrize(("suffix", "split"), [("", "train"), ("#train", "train"), ("#test", "test")])
def test_a_folder_and_its_split(tokenizer: Any, folder: Path, suffix: str, split: str) -> None:
    (batch,) = octavo.text_batches(tokenizer, f"{folder}{suffix}")
    found = [ids[mask.bool()].tolist() for ids, mask in zip(*batch.values(), strict=True)]

    assert sorted(found) == sorted(tokenizer(text).input_ids for text in SPLITS[split])


def test_a_dataset_without_text(tokenizer: Any, tmp_path: Path) -> None:
    directory = tmp_path / "labels"
    directory.mkdir()
    (directory / "train.json").write_text('{"prompt": "Once", "label": 1}\n')

    message = f"dataset {directory} has no 'text' column, found ['prompt', 'label']"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        octavo.text_batches(tokenizer, directory)


@pytest.mark.parametrize("source", ["no-one/no-such-dataset", "gone.text"])
def test_a_dataset_that_cannot_be_loaded_is_named(tokenizer: Any, source: str) -> None:
    with pytest.raises(ConfigError, match=source):
        octavo.text_batches(tokenizer, source)


def test_an_unknown_split_is_named(tokenizer: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"dev.*train"):
        octavo.text_batches(tokenizer, f"{folder}#dev")


def test_a_row_without_text_is_named(tokenizer: Any, tmp_path: Path) -> None:
    directory = tmp_path / "rows"
    directory.mkdir()
    (directory / "train.json").write_text('{"text": "Once upon a time"}\n{"text": null}\n')

    with pytest.raises(ConfigError, match=r"rows, row 2: expected a string as 'text', found None"):
        octavo.text_batches(tokenizer, directory)
