"""What vLLM's own loading code makes of our exports for target vllm, beside what `octavo verify` says of them.

Run: VLLM_SRC=DIR python benchmarks/vllm_loads.py --vllm PYTHON --judge SCRIPT [--converted] [--only GLOB] [--write]
With --converted: of exports without a target, after `octavo convert --to compressed_tensors --target vllm --lossy`.

PYTHON has vLLM's dependencies, DIR its unpacked wheel, and SCRIPT takes a checkpoint folder, loads it with vLLM's
config parsing, model classes and `load_weights`, and exits with 0 if every tensor was taken, nothing was left unset and
the weights have the values that the checkpoint's tensors stand for; it prints a line `PASS values … difference N`.
Tiny random models with the shapes of Llama (dense), Qwen3 with a tied head, and Qwen3-MoE. Verify's verdict must be the
judge's or `unknown`; --write keeps the rows in vllm_loads.json, which docs/consumers.md shows.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import octavo

RESULTS = Path(__file__).with_name("vllm_loads.json")
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"model_type": "llama", **SIZES},
    "tied": {"model_type": "qwen3", "tie_word_embeddings": True, **SIZES},
    "moe": {
        "model_type": "qwen3_moe", "moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2, **SIZES,
    },
}  # fmt: skip
CONFIGS = (
    "FP8_DEFAULT_CFG",
    "FP8_DEFAULT_CFG+FP8_KV_CFG",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "NVFP4_DEFAULT_CFG",
    "NVFP4_DEFAULT_CFG+FP8_KV_CFG",
    "W4A16_NVFP4_CFG",
    "MXFP8_DEFAULT_CFG",
    "INT8_DEFAULT_CFG",
    "INT8_WEIGHT_ONLY_CFG",
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "MXFP4_MLP_WEIGHT_ONLY_CFG",
)


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--vllm", required=True, help="Python with vLLM's dependencies.")
    arguments.add_argument(
        "--judge", required=True, type=Path, help="Script that loads a checkpoint with vLLM."
    )
    arguments.add_argument("--only", default="*", help="Cases to run, as `moe *`.")
    arguments.add_argument("--converted", action="store_true", help="Convert from ModelOpt's dialect.")
    arguments.add_argument("--write", action="store_true", help="Keep the rows in vllm_loads.json.")
    options = arguments.parse_args()
    cases = [
        (kind, config) for kind in MODELS for config in CONFIGS if fnmatch(f"{kind} {config}", options.only)
    ]
    rows = []
    for kind, config in cases:
        rows.append(row := run(kind, config, options))
        print(f"| {' | '.join(map(str, row.values()))} |", flush=True)
        if options.write:
            write(row)
    return int(any(row["verify"] not in (row["vllm"], "unknown") for row in rows))


def run(kind: str, config: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what verify and vLLM make of one export."""
    nothing = dict.fromkeys(("exporter", "verify", "vllm"), "not written")
    row: dict[str, Any] = {"model": kind, "config": config, **nothing}
    with tempfile.TemporaryDirectory() as folder:
        try:
            make = convert if options.converted else export
            written, directory = make(kind, config, Path(folder) / "out")
        except octavo.OctavoError as refusal:
            reason = re.search(r"refused \((.*?)\)", str(refusal))
            return {**row, "difference": reason[1] if reason else str(refusal)[:120]}
        judged = subprocess.run(
            [options.vllm, str(options.judge), str(directory)], capture_output=True, text=True, check=False
        )
        verdict, found = judgement(judged.stdout)
        verified = verify_verdict(directory)
    return {**row, "exporter": written, "verify": verified, "vllm": verdict, "difference": found}


def verify_verdict(directory: Path) -> str:
    """Return what `octavo verify` says: `loads` without findings, `unknown` with warnings, `refused` with errors."""
    severities = {finding.severity for finding in octavo.verify_checkpoint(directory, "vllm")}
    return "refused" if "error" in severities else "unknown" if severities else "loads"


def export(kind: str, config: str, directory: Path, target: str | None = "vllm") -> tuple[str, Path]:
    """Quantize the tiny model of a kind and export it; return how it is written, and where."""
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**MODELS[kind]), dtype=torch.bfloat16
    )
    batch = torch.randint(3, SIZES["vocab_size"], (4, 64))
    presets = octavo.merge_configs(*config.split("+"))
    octavo.quantize(model.eval(), presets, [batch], quiet=True, target=target)
    report = octavo.export_hf_checkpoint(model, export_dir=directory, quiet=True, target=target)
    return report.exporter, directory


def convert(kind: str, config: str, directory: Path) -> tuple[str, Path]:
    """Export the model in ModelOpt's dialect and convert that for vLLM; return how it is written, and where."""
    export(kind, config, directory, target=None)
    out = directory.with_name("converted")
    report = octavo.convert_checkpoint(
        directory, out, "compressed_tensors", target="vllm", lossy=True, quiet=True
    )
    return f"{report.dialect}, converted", out


def judgement(output: str) -> tuple[str, str]:
    """Return the judge's verdict, and the largest relative difference of values or why it refused.

    Where the judge itself failed to compare a value (it has no form for experts of packed integers), but every tensor
    was taken and none left unset, the checkpoint loads and the number of such values is told.
    """
    lines = output.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    not_compared = [line for line in failed if re.search(r"values .*(AttributeError|TypeError)", line)]
    taken = all(
        any(re.match(f"PASS +{check} ", line) for line in lines) for check in ("complete", "consumed")
    )
    found = re.search(r"worst relative difference (\S+)", output)
    if not taken or len(failed) > len(not_compared) or found is None:
        return "refused", " ".join((failed or ["no verdict"])[0].split())[:120]
    return "loads", found[1] + (f", {len(not_compared)} weights not compared" if not_compared else "")


def write(row: dict[str, Any]) -> None:
    """Put a row into the kept results."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    others = [old for old in kept if _key(old) != _key(row)]
    rows = sorted([*others, row], key=_key)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _key(row: dict[str, Any]) -> tuple[bool, int, int]:
    is_converted = row["exporter"].endswith("converted")
    return is_converted, list(MODELS).index(row["model"]), CONFIGS.index(row["config"])


if __name__ == "__main__":
    sys.exit(main())
