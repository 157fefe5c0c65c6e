"""The families of `families/cases.yaml`: their tiny models, batches, and the table of what is supported."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import octavo

FORMATS = {
    "FP8": octavo.FP8_DEFAULT_CFG,
    "INT8": octavo.INT8_DEFAULT_CFG,
    "INT4": octavo.with_block_size(octavo.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, 32),
    "NVFP4": octavo.NVFP4_DEFAULT_CFG,
}

_HEAD = """# Families

Written by `benchmarks/support_table.py` from the results of `tests/families`, which run every row on a tiny config of
the installed transformers: plan, quantize, export, read back; the logits of the model read back equal those of the
finalized simulation bit for bit. How layers are found: by the family map in `core/model/families`, which the model's
own dataflow confirms, or by name. A family that is not listed goes by name, too.
[How to add one](plugins.md#a-model-family).

FP8: `FP8_DEFAULT_CFG`; INT8: `INT8_DEFAULT_CFG`; INT4: `INT4_BLOCKWISE_WEIGHT_ONLY_CFG` in blocks of 32; NVFP4:
`NVFP4_DEFAULT_CFG`. The presets leave vision towers, routers of experts and language heads alone. They quantize
convolutions, which the dialect does not store: ViT and Whisper leave theirs out by a rule, as the refusal suggests.
They quantize inputs of `nn.LayerNorm`, for which checkpoints have no place: the export's report says so. gpt-oss and
Llama 4 hold all experts of a layer in one tensor, for which ModelOpt's dialect has FP8 and NVFP4: other formats run in
simulation, and the export refuses them by name unless a rule leaves the experts out.

The last columns say for which families a reader's own loading code took our files, whatever the format: **ran** or
**unknown**. It reads formats, not families, so what [it loads of a format](consumers.md) holds for others where its
model classes name layers as the checkpoint does; `octavo verify DIR --consumer NAME` says of one checkpoint what its
reader would find wrong.

| family | `model_type` | layers found | FP8 | INT8 | INT4 | NVFP4 | vLLM | SGLang | TensorRT-LLM | transformers |
|---|---|---|---|---|---|---|---|---|---|---|
"""
# Model types whose exports a reader's own code has loaded: benchmarks/vllm_loads.json, and by hand in transformers.
_RAN = {"vLLM": ("llama", "qwen3", "qwen3_moe"), "SGLang": (), "TensorRT-LLM": (), "transformers": ("llama",)}


@dataclass(frozen=True)
class FamilyCase:
    """One entry of `cases.yaml`; the fields are explained there."""

    name: str
    config: dict[str, Any]
    map: str | None = None
    class_name: str = ""
    reads: str = "text"
    left_out: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    _built: list[nn.Module] = field(default_factory=list, repr=False, compare=False)

    @property
    def num_blocks(self) -> int:
        """Two, or two of each kind."""
        return 4 if "decoder_start_token_id" in self.config else 2

    def model(self) -> nn.Module:
        """A model in eval mode with random weights that are the same every time: built once and copied."""
        if not self._built:
            self._built.append(self._build())
        return copy.deepcopy(self._built[0])

    def _build(self) -> nn.Module:
        config = AutoConfig.for_model(**self.config)
        torch.manual_seed(0)
        if self.class_name:
            return getattr(transformers, self.class_name)(config).eval()
        model: nn.Module = AutoModelForCausalLM.from_config(config)
        return model.eval()

    def quant_config(self, format_name: str) -> dict[str, Any]:
        """Return the preset of a format, without the layers that the case leaves out."""
        rules = [{"quantizer_name": "*", "parent_class": name, "enable": False} for name in self.left_out]
        return octavo.merge_configs(FORMATS[format_name], {"quant_cfg": rules})

    def batch(self) -> dict[str, Tensor]:
        """Two samples."""
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(6, 128, (2, 12), generator=generator)
        images = torch.randn(2, 3, 32, 32, generator=generator)
        with_image = torch.cat([torch.full((2, 4), self.config.get("image_token_index", 0)), tokens], 1)
        inputs = {
            "text": {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
            "image": {"pixel_values": images},
            "image and text": {"input_ids": with_image, "pixel_values": images},
            "sound": {"input_features": torch.randn(2, 8, 64, generator=generator)},
        }[self.reads]
        return inputs | ({"decoder_input_ids": tokens.flip(1)} if self.num_blocks == 4 else {})


def family_cases() -> dict[str, FamilyCase]:
    """Return the cases by name."""
    path = Path(__file__).parents[1] / "families" / "cases.yaml"
    cases = yaml.safe_load(path.read_text(encoding="utf-8"))["cases"]
    return {
        name: FamilyCase(
            name,
            case["config"],
            case.get("map"),
            case.get("class", ""),
            case.get("reads", "text"),
            tuple(case.get("leaves_out", ())),
            tuple(case.get("refused", ())),
        )
        for name, case in cases.items()
    }


def support_table(passed: Mapping[tuple[str, str], bool]) -> str:
    """Return docs/support.md: which families passed in which formats."""
    rows = [
        f"| {name} | `{case.config['model_type']}` | {f'map `{case.map}`' if case.map else 'by name'} | "
        + " | ".join(_cell(case, format_name, passed[name, format_name]) for format_name in FORMATS)
        + "".join(f" | {'ran' if case.config['model_type'] in ran else 'unknown'}" for ran in _RAN.values())
        + " |"
        for name, case in family_cases().items()
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _cell(case: FamilyCase, format_name: str, passed: bool) -> str:
    if not passed:
        return "no"
    return "refused" if format_name in case.refused else "yes"
