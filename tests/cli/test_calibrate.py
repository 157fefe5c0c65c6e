"""`octavo calibrate` once, then `octavo quantize --stats` in many formats."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from helpers.cli_runner import DATA, MODEL, Run
from helpers.exporters_models import digests
from octavo.core.calibration.statistics.statistics import Statistics

PRESETS = (
    ("INT8_DEFAULT_CFG",),
    ("FP8_DEFAULT_CFG", "--kv", "FP8_KV_CFG"),
    ("NVFP4_DEFAULT_CFG",),
    ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "--block-size", 32),
    ("MXFP4_DEFAULT_CFG",),
)


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli") / "stats"


def test_once_for_five_formats(octavo_command: Run, stats: Path, tmp_path: Path) -> None:
    made = octavo_command("calibrate", MODEL, *DATA, "--out", stats, "--json")
    assert made.code == 0
    assert (made.json["directory"], made.json["num_inputs"]) == (str(stats), 36)
    assert made.json["collection"]["held_tokens"] == 256
    assert "octavo: statistics of 36 distinct inputs: " in made.err

    for number, preset in enumerate(PRESETS):
        quantize = ("quantize", MODEL, "--preset", *preset)
        done = octavo_command(*quantize, "--stats", stats, "--out", tmp_path / f"{number}")
        assert (done.code, "0 forward passes over data\n" in done.err) == (0, True)
    octavo_command("quantize", MODEL, "--preset", *PRESETS[1], *DATA, "--out", tmp_path / "from-data")
    assert digests(tmp_path / "1") == digests(tmp_path / "from-data")


def test_what_is_refused(octavo_command: Run, tmp_path: Path) -> None:
    int8 = ("quantize", MODEL, "--preset", "INT8_DEFAULT_CFG", "--out", tmp_path / "out")
    small = tmp_path / "small"
    assert (
        octavo_command("calibrate", MODEL, *DATA, "--no-gram", "--held-tokens", 0, "--out", small).code == 0
    )

    both = octavo_command(*int8, *DATA, "--stats", small)
    gone = octavo_command(*int8, "--stats", tmp_path / "gone")
    other = octavo_command(*int8, "--stats", small, "--dtype", "bfloat16")
    place = octavo_command("calibrate", MODEL, *DATA, "--out", small)
    size = octavo_command("calibrate", MODEL, *DATA, "--stats-budget", "many", "--out", tmp_path / "new")

    assert (both.code, both.err) == (3, "octavo: error: give either --calib-data or --stats, not both\n")
    assert gone.code == 5
    assert "give a folder that octavo calibrate" in gone.err
    assert other.code == 4
    assert f"{small} and this model are not of one model: names, shapes or dtypes of its weights" in other.err
    assert (place.code, size.code) == (5, 3)
    assert "is not empty; give another folder" in place.err
    assert "--stats-budget) 'many': expected a number of bytes" in size.err


def test_a_batch_that_is_not_finite(octavo_command: Run, tmp_path: Path) -> None:
    """A word whose embedding is NaN is in the second of two samples."""
    model, data = tmp_path / "model", tmp_path / "data.jsonl"
    shutil.copytree(MODEL, model)
    tensors = load_file(model / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = ["Once upon a time there was a cat.", "Once upon a time there was a fox."]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    own = tokenizer.convert_tokens_to_ids("x")
    assert [own in tokenizer(text)["input_ids"] for text in texts] == [False, True]
    tensors["model.embed_tokens.weight"][own] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    command = ("calibrate", model, "--calib-data", data, "--seq-len", 16, "--batch-size", 1, "--no-gram")

    refused = octavo_command(*command, "--out", tmp_path / "refused")
    skipped = octavo_command(*command, "--skip-bad-batches", "--out", tmp_path / "skipped")

    assert refused.code == 4
    assert re.search(r"model\.layers\.0\.\S+ saw NaN or infinite values in batch 1 ", refused.err)
    assert skipped.code == 0
    assert "warning: 1 batches with NaN or infinite values were left out of " in skipped.err
    batches = Statistics.load(tmp_path / "skipped").skipped_batches
    assert len(batches) >= 35
    assert set(map(tuple, batches.values())) == {(1,)}
