"""Texts that cannot be read: what is wrong, and where."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import octavo
from octavo.core.errors import ConfigError, PluginError


@pytest.fixture(scope="module")
def tokenizer(stories: Path) -> Any:
    return AutoTokenizer.from_pretrained(stories)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"text": "Once upon"}\n\n{"txt": "a time"}\n', 3),
        ('{"text": "Once upon"}\n{"text": "a ti', 2),
        ('["text"]\n', 1),
        ('{"text": "Once upon"}\nnull\n', 2),
        ("plain words\n", 1),
    ],
    ids=["another field", "cut short", "a list", "null", "no JSON"],
)
def test_a_wrong_line_is_named(tokenizer: Any, tmp_path: Path, content: str, line: int) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)

    message = f"{path}, line {line}: expected a JSON object with a 'text' field"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        octavo.text_batches(tokenizer, path)


@pytest.mark.parametrize("name", ["gone.txt", "gone.jsonl"])
def test_a_missing_file(tokenizer: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path / name))} does not exist$"):
        octavo.text_batches(tokenizer, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("data.jsonl", '{"text": "  "}\n', "has no text"),
        ("data.jsonl", "", "has no text"),
        ("data.txt", "", "yields no sample of two tokens or more"),
    ],
)
def test_nothing_to_read(tokenizer: Any, tmp_path: Path, name: str, content: str, problem: str) -> None:
    path = tmp_path / name
    path.write_text(content)

    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path} {problem}')}$"):
        octavo.text_batches(tokenizer, path)


def test_one_token_is_no_sample(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "Once upon a time"}')

    with pytest.raises(ConfigError, match="yields no sample of two tokens or more"):
        octavo.text_batches(tokenizer, path, sequence_length=1)


def test_a_tokenizer_that_no_plugin_knows(tmp_path: Path) -> None:
    with pytest.raises(
        PluginError,
        match=r"no plugin can read .*data\.txt; loaded: huggingface, deepspeed_zero, megatron_core",
    ):
        octavo.text_batches(object(), tmp_path / "data.txt")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"], ids=ascii)
def test_only_line_feeds_end_a_line(tokenizer: Any, tmp_path: Path, separator: str) -> None:
    path = tmp_path / "data.jsonl"
    text = f"Once upon{separator}a time"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False), encoding="utf-8")

    (batch,) = octavo.text_batches(tokenizer, path)

    assert batch["input_ids"][0].tolist() == tokenizer(text).input_ids


@pytest.mark.parametrize("value", ["null", "5", '["a", "b"]', '{"a": 1}'])
def test_a_text_that_is_no_string_is_refused(tokenizer: Any, tmp_path: Path, value: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"text": "Once upon a time"}}\n{{"text": {value}}}\n')

    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}, line 2"):
        octavo.text_batches(tokenizer, path)


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl"])
def test_a_file_that_is_not_utf8_is_refused_by_name(tokenizer: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes('{"text": "caf\xe9 and more"}'.encode("latin-1"))

    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}.*(utf-8|UTF-8)"):
        octavo.text_batches(tokenizer, path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -1),
        ("num_samples", 0),
        ("num_samples", -1),
        ("sequence_length", -3),
    ],
)
def test_sizes_that_make_no_sense_are_refused(
    tokenizer: Any, tmp_path: Path, option: str, value: int
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "Once upon a time there was a dog"}\n' * 3)

    with pytest.raises(ConfigError, match=f"{option}.*{value}"):
        octavo.text_batches(tokenizer, path, **{option: value})


def test_no_window_is_longer_than_asked_for(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("Once upon a time there was a dog")

    with pytest.raises(ConfigError, match="yields no sample of two tokens or more"):
        octavo.text_batches(tokenizer, path, sequence_length=1)


def test_a_json_file_is_not_taken_for_prose(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[{"text": "Once upon a time"}]')

    with pytest.raises(ConfigError, match=r"data\.json.*\.jsonl"):
        octavo.text_batches(tokenizer, path)


def test_a_byte_order_mark_is_no_text(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "Once upon a time"}')

    (batch,) = octavo.text_batches(tokenizer, path)

    assert batch["input_ids"][0].tolist() == tokenizer("Once upon a time").input_ids
