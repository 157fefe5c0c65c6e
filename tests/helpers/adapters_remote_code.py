"""A model folder that brings its own modelling code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIGURATION = """
from transformers import PretrainedConfig


class PocketConfig(PretrainedConfig):
    model_type = "pocket"

    def __init__(self, vocab_size=64, hidden_size=32, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**kwargs)
"""
LAYERS = """
from torch import nn


class PocketBlock(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.up = nn.Linear(size, size, bias=False)

    def forward(self, x):
        return x + self.up(x).relu()
"""
MODELING = """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_pocket import PocketConfig
from .layers_pocket import PocketBlock


class PocketForCausalLM(PreTrainedModel):
    config_class = PocketConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.block = PocketBlock(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        return CausalLMOutput(logits=self.head(self.block(self.embed(input_ids))))
"""
CODE = {
    "configuration_pocket.py": CONFIGURATION,
    "layers_pocket.py": LAYERS,
    "modeling_pocket.py": MODELING,
}
CONFIG = {
    "model_type": "pocket",
    "architectures": ["PocketForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_pocket.PocketConfig",
        "AutoModelForCausalLM": "modeling_pocket.PocketForCausalLM",
    },
    "dtype": "float32",
}


def write_model_with_code(directory: Path) -> Path:
    """Write config, code and random weights to `directory`; return it."""
    directory.mkdir()
    for name, text in CODE.items():
        (directory / name).write_text(text)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    shapes = {"embed.weight": (64, 32), "block.up.weight": (32, 32), "head.weight": (64, 32)}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
