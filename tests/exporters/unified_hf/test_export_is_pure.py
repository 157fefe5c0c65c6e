"""Exporting changes nothing on the model, and gives the same bytes each time; a failed one leaves nothing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.exporters_models import digests, export, quantized, same
from octavo.core.calibration.finalized import finalized_for
from octavo.core.errors import ExportError

CONFIGS = {
    "FP8 with caches": octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG"),
    "NVFP4": octavo.NVFP4_DEFAULT_CFG,
    "square FP8": octavo.FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG,
    "MXFP4": octavo.MXFP4_DEFAULT_CFG,
    "INT4": octavo.INT4_BLOCKWISE_WEIGHT_ONLY_CFG,
}


def everything(model: nn.Module) -> dict[str, Any]:
    """Return what can be seen of a model, tensors apart, by module name."""
    modules: dict[str, Any] = {}
    for name, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        modules[name] = (type(module), {k: repr(v) for k, v in own.items()}, list(module._buffers))
    return modules


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_model_stays_as_it_was(config: dict[str, Any], tmp_path: Path) -> None:
    model = quantized(config, torch.bfloat16)
    model.train()
    tensors = dict(model.state_dict(keep_vars=True))
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    before, record = everything(model), octavo.history(model)

    export(model, tmp_path / "out", dtype=torch.float16)

    assert everything(model) == before
    assert octavo.history(model) == record
    after = model.state_dict(keep_vars=True)
    assert after.keys() == tensors.keys()
    assert all(after[name] is tensor for name, tensor in tensors.items())
    assert all(same(after[name].detach(), value) for name, value in values.items())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_twice_gives_the_same_bytes(config: dict[str, Any], tmp_path: Path) -> None:
    model = quantized(config)
    first, second = (export(model, tmp_path / name) for name in ("first", "second"))

    assert digests(first) == digests(second)


def test_a_finalized_model_gives_the_same_bytes_and_stays_finalized(tmp_path: Path) -> None:
    model = quantized("NVFP4_DEFAULT_CFG")
    first = export(model, tmp_path / "first")
    octavo.finalize(model, "unified_hf")

    second = export(model, tmp_path / "second")

    assert digests(first) == digests(second)
    assert finalized_for(model) == "unified_hf"


class FullDisk:
    """A tokenizer that meets a full disk: a disk cannot be filled here."""

    def save_pretrained(self, directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_checkpoint_and_the_model_as_they_were(tmp_path: Path) -> None:
    model = quantized("NVFP4_DEFAULT_CFG")
    directory = export(model, tmp_path / "out")
    before, files = everything(model), digests(tmp_path)

    with pytest.raises(
        ExportError, match=rf"writing {directory} failed: .*No space left.*what was there before is whole"
    ):
        export(model, directory, tokenizer=FullDisk(), overwrite=True)

    assert digests(tmp_path) == files
    assert everything(model) == before
