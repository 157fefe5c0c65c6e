"""MXFP4 weights whose scales are rounded to even exponents are stored like any others."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

import octavo
from helpers.tiny import tiny_llama, token_batches


@torch.no_grad()
def test_even_exponents_are_stored_and_read_back(tmp_path: Path) -> None:
    config = copy.deepcopy(octavo.MXFP4_MLP_WEIGHT_ONLY_CFG)
    for rule in config["quant_cfg"]:
        if "cfg" in rule:
            rule["cfg"]["block_sizes"]["scale_rounding"] = "even"
    model = octavo.quantize(tiny_llama(), config, quiet=True)
    tokens = token_batches(1)[0]

    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)
    with octavo.finalized(model, "unified_hf"):
        expected = model(tokens).logits
    found = octavo.load_quantized(tmp_path / "out")(tokens).logits

    assert torch.equal(found, expected)
    ceil = octavo.quantize(tiny_llama(), octavo.MXFP4_MLP_WEIGHT_ONLY_CFG, quiet=True)
    assert not torch.equal(ceil(tokens).logits, model(tokens).logits)
