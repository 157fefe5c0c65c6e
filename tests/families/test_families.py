"""Each family of `cases.yaml`: its map is true, and what is stored is what was simulated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import octavo
from helpers.family_cases import FORMATS, family_cases
from octavo.core.errors import ExportError
from octavo.core.model.family_map import known_model_types
from octavo.core.modules import quantized_layers
from octavo.core.plugins import plugins

CASES = family_cases()
MAPPED = [name for name, case in CASES.items() if case.map]
# Parts of names of linear layers that the presets leave alone.
LEFT_ALONE = {
    "lm_head", "proj_out", "vision_tower", "visual", "multi_modal_projector",
    "router", "gate", "shared_expert_gate",
}  # fmt: skip


def test_every_model_type_of_a_map_is_a_case() -> None:
    configs = [CASES[name].model().config for name in MAPPED]

    assert {getattr(config, "text_config", config).model_type for config in configs} == set(
        known_model_types()
    )


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_computes_what_the_finalized_model_does(
    name: str, format_name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    model, batch = case.model(), case.batch()
    plain = logits(model, batch)

    octavo.quantize(model, case.quant_config(format_name), [batch], quiet=True)
    if format_name in case.refused:
        with pytest.raises(
            ExportError,
            match=r"experts of model\.layers\.0\..* in one tensor, stored in this dialect as FP8, NVFP4",
        ):
            octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)
        return
    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)
    with octavo.finalized(model, "unified_hf"):
        expected = logits(model, batch)
    read_back = octavo.load_quantized(tmp_path / "out")

    assert [warning.partition(": ")[0] for warning in report.warnings] == unstored_norms(model)
    assert type(read_back) is type(model)
    assert torch.equal(logits(read_back, batch).view(torch.int32), expected.view(torch.int32))
    assert not torch.equal(expected, plain)


@pytest.mark.parametrize("name", CASES)
def test_map_and_dataflow_agree_and_every_linear_layer_is_quantized_but_heads_routers_and_vision(
    name: str,
) -> None:
    """A plan raises where map and dataflow differ, and warns where the dataflow could not be seen."""
    model = CASES[name].model()
    description, plan = plugins().describe_model(model), octavo.plan(model, "FP8_DEFAULT_CFG")

    assert (description.family if description else None) == CASES[name].map
    assert (plan.errors, plan.warnings) == ((), ())
    if description is not None:
        assert {tuple(sorted(group)) for group in description.same_input} == set(plan.groups)
    quantized = {layer.site.name for layer in plan.layers if layer.is_quantized}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert quantized & linear == {name for name in linear if LEFT_ALONE.isdisjoint(name.split("."))}


@pytest.mark.parametrize("name", MAPPED)
def test_every_layer_of_a_mapped_block_has_a_role_and_a_side_in_tensor_parallelism(name: str) -> None:
    model = CASES[name].model()
    description = plugins().describe_model(model)
    assert description is not None
    with_role = {name for block in description.blocks for name in block.roles.values()}
    blocks = tuple(f"{block.name}." for block in description.blocks)
    layers = {n: m for n, m in model.named_modules() if n.startswith(blocks) and hasattr(m, "weight")}

    assert len(description.blocks) == CASES[name].num_blocks
    assert {n for n, m in layers.items() if not isinstance(m, nn.Embedding)} <= with_role
    linear = {n for n, m in layers.items() if isinstance(m, nn.Linear | Conv1D)}
    divided = {n for n in linear if LEFT_ALONE.isdisjoint(n.split("."))}
    assert divided == description.column_parallel ^ description.row_parallel
    assert description.hyperparameters["num_heads"] == 4


def unstored_norms(model: nn.Module) -> list[str]:
    """Return the warning that is expected where a preset quantizes the inputs of norms and poolings."""
    count = sum(not layer.quantized_weights() for _, layer in quantized_layers(model))
    return [f"the dialect has no place for {count} quantizers"] if count else []


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(**batch).logits
    return found
