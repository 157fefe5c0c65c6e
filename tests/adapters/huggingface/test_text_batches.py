"""Documents and text files as padded, sorted, seeded batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

import octavo

BOS = 1
TEXT = "Once upon a time there was a little dog who liked to play in the park with Lily and Tom"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def tokenizer(stories: Path) -> Any:
    return AutoTokenizer.from_pretrained(stories)


@pytest.fixture
def documents(tmp_path: Path) -> Callable[[list[str]], Path]:
    def write(texts: list[str]) -> Path:
        path = tmp_path / "documents.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path

    return write


def rows(batches: list[dict[str, Tensor]]) -> list[list[int]]:
    """Return each sample without its padding."""
    return [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_a_document_is_one_sample_with_the_special_tokens_of_the_tokenizer(
    tokenizer: Any, documents: Callable[[list[str]], Path]
) -> None:
    batches = octavo.text_batches(tokenizer, documents(["Once upon a time"]))

    assert rows(batches) == [tokenizer("Once upon a time").input_ids]
    assert rows(batches)[0][0] == BOS


def test_documents_are_cut_stripped_and_blank_ones_left_out(
    tokenizer: Any, documents: Callable[[list[str]], Path]
) -> None:
    path = documents(["  Once upon a time, there was a dog. \n", "   ", ""])
    path.write_text(path.read_text() + "\n\n")

    assert rows(octavo.text_batches(tokenizer, path, sequence_length=5)) == [
        tokenizer("Once upon a time, there was a dog.").input_ids[:5]
    ]


def test_samples_are_sorted_by_length_and_padded_on_the_right(
    tokenizer: Any, documents: Callable[[list[str]], Path]
) -> None:
    texts = [" ".join(WORDS[:count]) for count in (9, 2, 5, 12, 3)]
    batches = octavo.text_batches(tokenizer, documents(texts), batch_size=2)
    expected = sorted((tokenizer(text).input_ids for text in texts), key=len)

    assert rows(batches) == expected
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 1]
    for batch in batches:
        width = int(batch["attention_mask"].sum(1).max())
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(batch["input_ids"]), width)
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
        assert (batch["attention_mask"].diff(dim=1) <= 0).all(), "ones, then zeros"
        assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()


def test_a_tokenizer_without_a_padding_token_pads_with_zero(
    stories: Path, documents: Callable[[list[str]], Path]
) -> None:
    own = AutoTokenizer.from_pretrained(stories, pad_token=None)
    assert own.pad_token_id is None

    (batch,) = octavo.text_batches(own, documents(["Once", "Once upon a time"]))

    assert batch["input_ids"][0, batch["attention_mask"][0] == 0].unique().tolist() == [0]


def test_the_seed_chooses_and_the_same_seed_chooses_the_same(
    tokenizer: Any, documents: Callable[[list[str]], Path]
) -> None:
    path = documents([" ".join(WORDS[start : start + 4]) for start in range(15)])
    chosen = {
        seed: rows(octavo.text_batches(tokenizer, path, num_samples=4, seed=seed)) for seed in (0, 1, 2)
    }

    assert all(len(samples) == 4 for samples in chosen.values())
    assert len({json.dumps(samples) for samples in chosen.values()}) == 3
    assert rows(octavo.text_batches(tokenizer, path, num_samples=4, seed=1)) == chosen[1]


def test_the_seed_does_not_matter_where_all_samples_are_taken(
    tokenizer: Any, documents: Callable[[list[str]], Path]
) -> None:
    path = documents(["Once upon", "a time there", "was a dog"])
    found = [rows(octavo.text_batches(tokenizer, path, num_samples=3, seed=seed)) for seed in (0, 7)]

    assert found[0] == found[1]


def test_a_text_file_is_one_stream_of_windows_that_begin_with_bos(tokenizer: Any, tmp_path: Path) -> None:
    text = " ".join(WORDS * 4)
    (tmp_path / "stream.txt").write_text(text)
    windows = rows(octavo.text_batches(tokenizer, tmp_path / "stream.txt", sequence_length=16))
    whole = tokenizer(text, add_special_tokens=False).input_ids
    lengths = [len(window) for window in windows]

    assert {window[0] for window in windows} == {BOS}
    assert max(lengths) == 16
    assert sum(length == 16 for length in lengths) == len(whole) // 15
    # Sorting by length is stable, so full windows are in the order of the text, after the short last one.
    short, full = [w for w in windows if len(w) < 16], [w for w in windows if len(w) == 16]
    assert [token for window in full + short for token in window[1:]] == whole


def test_windows_have_no_bos_where_the_tokenizer_adds_none(stories: Path, tmp_path: Path) -> None:
    plain = AutoTokenizer.from_pretrained(stories)
    plain.backend_tokenizer.post_processor = None
    assert plain("").input_ids == []
    text = " ".join(WORDS)
    (tmp_path / "stream.txt").write_text(text)

    windows = rows(octavo.text_batches(plain, tmp_path / "stream.txt", sequence_length=4))

    whole = plain(text).input_ids
    assert [window for window in windows if len(window) == 4] == [
        whole[start : start + 4] for start in range(0, len(whole) - 3, 4)
    ]


def test_no_more_documents_are_tokenized_than_asked_for(
    tokenizer: Any, documents: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = documents([" ".join(WORDS[start : start + 4]) for start in range(15)])
    seen: list[str] = []
    original = type(tokenizer).__call__

    def counted(self: Any, text: str, **options: Any) -> Any:
        seen.append(text)
        return original(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)

    assert len(rows(octavo.text_batches(tokenizer, path, num_samples=4))) == len(seen) == 4


def test_documents_that_are_too_short_are_replaced(
    stories: Path, documents: Callable[[list[str]], Path]
) -> None:
    own = AutoTokenizer.from_pretrained(stories, add_bos_token=False)
    short, whole = next(w for w in "abc" if len(own(w).input_ids) < 2), "Once upon a time"

    found = rows(octavo.text_batches(own, documents([short] * 9 + [whole] * 3), num_samples=3))

    assert found == [own(whole).input_ids] * 3
