"""Which models family maps describe, and what happens where a map does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, Exaone4Config, LlamaConfig, StableLmConfig

from octavo.core.errors import ConfigError
from octavo.core.model import family_map
from octavo.core.model.family_map import _load, describe_by_map
from octavo.core.plugins import plugins

FOLDER = Path(family_map.__file__).with_name("families")
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_what_no_map_knows_is_not_described() -> None:
    with torch.device("meta"):
        exaone = AutoModelForCausalLM.from_config(Exaone4Config(**SIZES, num_hidden_layers=1))
        backbone = AutoModel.from_config(LlamaConfig(**{**SIZES, "num_hidden_layers": 1}))

    assert plugins().describe_model(exaone) is None
    assert plugins().describe_model(backbone) is None, (
        "no `model.layers` in it: names are all there is to go by"
    )
    assert plugins().describe_model(nn.Linear(2, 2)) is None
    assert describe_by_map(nn.Linear(2, 2), "llama", object()) is None


def test_a_map_that_does_not_fit_names_the_layers_that_are_missing() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, "num_hidden_layers": 3}))
    del model.model.layers[1].mlp.gate_proj
    del model.model.layers[2].self_attn.o_proj
    message = (
        r"^the family map 'llama' \(model type 'llama'\) names layers that this LlamaForCausalLM does not have: "
        "model.layers.1.mlp.gate_proj, model.layers.2.self_attn.o_proj$"
    )

    with pytest.raises(ConfigError, match=message):
        plugins().describe_model(model)


def test_a_map_describes_only_the_variants_that_it_is_about() -> None:
    """Attention and MLP side by side read one tensor, which StableLM's map does not say."""
    with torch.device("meta"):
        models = [
            AutoModelForCausalLM.from_config(
                StableLmConfig(**SIZES, num_hidden_layers=1, use_parallel_residual=parallel)
            )
            for parallel in (False, True)
        ]

    assert [found and found.family for found in map(plugins().describe_model, models)] == ["stablelm", None]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_map_is_short_and_names_only_roles_that_it_has(path: Path) -> None:
    """A misspelt role in a group would be taken for one that some blocks do not have."""
    table = _load(path.stem)
    stacks = table["stacks"].values() if "stacks" in table else [table]
    roles = {role for stack in stacks for role in stack["block_roles"]}
    optional = {"mlp.gate"}  # inherited lists may name what the extending map has removed

    groups = [*table["same_input"], *table.get("same_input_in_all_blocks", [])]
    for names in [*groups, table["column_parallel"], table["row_parallel"], table.get("segments", {})]:
        assert set(names) <= roles | optional
    assert len(path.read_text().splitlines()) <= 60
