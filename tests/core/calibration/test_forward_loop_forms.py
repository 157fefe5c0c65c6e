"""Calibration data comes in many forms, and each gives the same statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

import octavo
from helpers.calibration_models import calibrated_state
from helpers.tiny import tiny_llama, token_batches

BATCHES = token_batches()
ROWS = torch.cat(BATCHES)
MASKS = [torch.ones_like(ids) for ids in BATCHES]


def run_it(model: nn.Module) -> None:
    for ids in BATCHES:
        model(ids)


class Loop:
    """A callable object that can be iterated over too: it counts as a callable."""

    def __call__(self, model: nn.Module) -> None:
        run_it(model)

    def __iter__(self) -> Any:
        raise AssertionError("a callable is called")


def dict_rows() -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ROWS]


FORMS: dict[str, Callable[[], Any]] = {
    "function": lambda: run_it,
    "callable object": Loop,
    "list of tensors": lambda: BATCHES,
    "tuple of tensors": lambda: tuple(BATCHES),
    "list of dicts": lambda: [{"input_ids": ids} for ids in BATCHES],
    "dicts with more than tensors": lambda: [{"input_ids": ids, "use_cache": False} for ids in BATCHES],
    "list of tuples": lambda: list(zip(BATCHES, MASKS, strict=True)),
    "list of lists": lambda: [[ids, mask] for ids, mask in zip(BATCHES, MASKS, strict=True)],
    "list of BatchEncoding": lambda: [BatchEncoding({"input_ids": ids}) for ids in BATCHES],
    "generator": lambda: (ids for ids in BATCHES),
    "DataLoader of tensors": lambda: DataLoader(ROWS, batch_size=2),
    "DataLoader of lists": lambda: DataLoader(TensorDataset(ROWS, torch.ones_like(ROWS)), batch_size=2),
    "DataLoader of dicts": lambda: DataLoader(dict_rows(), batch_size=2),
}


@pytest.fixture(scope="module")
def expected() -> dict[str, list[Any]]:
    return calibrated_state(_quantized(run_it))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_forward_loop_gives_the_same_statistics(
    form: str, expected: dict[str, list[Any]]
) -> None:
    assert calibrated_state(_quantized(FORMS[form]())) == expected


def test_the_statistics_follow_the_data(expected: dict[str, list[Any]]) -> None:
    assert calibrated_state(_quantized(BATCHES[:1])) != expected


def test_a_generator_is_read_once(expected: dict[str, list[Any]]) -> None:
    read = []

    def batches() -> Any:
        for ids in BATCHES:
            read.append(ids)
            yield ids

    _quantized(batches())

    assert len(read) == len(BATCHES)


def _quantized(forward_loop: Any) -> nn.Module:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
    return octavo.quantize(tiny_llama(num_hidden_layers=1), config, forward_loop, quiet=True)
