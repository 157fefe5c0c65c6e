"""StreamedModel: a checkpoint's model without its weights, its blocks, and the plan of what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from octavo.core.calibration.attach import attach, check_reached, detach
from octavo.core.calibration.layerwise import blocks_of
from octavo.core.calibration.smoothing_fold import format_of
from octavo.core.config.presets import Config
from octavo.core.errors import UnsupportedError, listed
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.checkpoint_writer import model_layout
from octavo.core.model.stored_weight import StoredWeight
from octavo.core.modules import quantized_layers
from octavo.core.plan import Plan
from octavo.core.plan import plan as plan_model
from octavo.core.plan.settings import LayerSetting
from octavo.core.plugins import plugins
from octavo.core.streaming.block_inputs import Passing, returned_forms
from octavo.core.streaming.source_headers import SourceHeaders
from octavo.core.streaming.source_weights import SourceWeights

REST = ""
"""Name of the part that is outside all blocks; it comes last."""


@dataclass(frozen=True)
class StreamedModel:
    """A model that is quantized part by part.

    Attributes:
        model: The model on the meta device, but for buffers that checkpoints do not hold.
        plan: What quantizing does to it.
        blocks: Its blocks by name, in the order they run.
        forms: What these return.
        headers: What its checkpoint holds.
        weights: Loads its tensors.
        layout: Where its tensors will be in the quantized checkpoint.
    """

    model: nn.Module
    plan: Plan
    blocks: dict[str, nn.Module]
    forms: Passing
    headers: SourceHeaders
    weights: SourceWeights
    layout: CheckpointLayout

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in the order in which they are written."""
        return [*self.blocks, REST]

    def part_of(self, name: str) -> str:
        """Return the part that a module or a tensor belongs to."""
        while name and name not in self.blocks:
            name = name.rpartition(".")[0]
        return name

    def tensors_of(self, part: str) -> list[str]:
        """Return the names of a part's parameters and buffers."""
        return [name for name in self.weights.names() if self.part_of(name) == part]

    def layers_of(self, part: str) -> list[LayerSetting]:
        """Return what the plan decides of a part's layers."""
        return [layer for layer in self.plan.layers if self.part_of(layer.site.name) == part]

    def groups_of(self, part: str) -> list[list[str]]:
        """Return the groups of a part's layers that read the same tensor."""
        return [list(group) for group in self.plan.groups if self.part_of(group[0]) == part]

    def layout_of(self, part: str) -> CheckpointLayout:
        """Return where a part's tensors will be."""
        names = {own: new for own, new in self.layout.names.items() if self.part_of(own) == part}
        return CheckpointLayout(
            names, {own: found for own, found in self.layout.parts.items() if self.part_of(own) == part}
        )


def open_model(
    source: Path,
    config: Config,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
    target: str | None,
    tp: int,
    stats_budget: int | str | None,
    quiet: bool,
) -> StreamedModel:
    """Build, plan and check; no weight is read.

    Raises:
        CheckpointError: the checkpoint is damaged, or not one of the model that its config describes.
        ConfigError, PlanError, UnsupportedError: as in `octavo.plan`.
        UnsupportedError: the model's blocks cannot be run one by one.
    """
    plugins().check_unquantized(source)
    headers = SourceHeaders.read(source)
    model = plugins().build_unloaded(source, headers.tensors.keys(), dtype, trust_remote_code)
    made = plan_model(model, config, target, tp, stats_budget)
    made.check()
    weights = SourceWeights(model, headers, plugins().checkpoint_layout(model, list(model.state_dict())))
    blocks = blocks_of(model)
    forms = returned_forms(model, blocks)
    layout = _layout(model, made.layers, quiet)
    if not plugins().fill_buffers(model):
        raise UnsupportedError(
            f"no plugin computes the buffers of {type(model).__name__}; quantize it in memory"
        )
    opened = StreamedModel(model, made, blocks, forms, headers, weights, layout)
    _check_groups(opened)
    return opened


def _layout(model: nn.Module, layers: Sequence[LayerSetting], quiet: bool) -> CheckpointLayout:
    """Return where tensors will be; quantizers are attached for that time, without values."""
    attach(model, layers)
    try:
        check_reached(model, quiet)
        found = [
            StoredWeight(name, layer, slot)
            for name, layer in quantized_layers(model)
            for slot in layer.weight_slots()
            if format_of(layer, slot) is not None
        ]
        weights = {weight.name: weight for weight in found}
        return model_layout(model, weights)
    finally:
        detach(model)


def _check_groups(opened: StreamedModel) -> None:
    """Refuse layers of several blocks that read one tensor: they would share scales."""
    for group in opened.plan.groups:
        parts = dict.fromkeys(map(opened.part_of, group))
        if len(parts) > 1:
            raise UnsupportedError(
                f"{listed(list(group), 3)} read the same tensor and are in several blocks "
                f"({', '.join(part or 'outside of blocks' for part in parts)}), which would share scales; quantize "
                "this model in memory (leave out --stream)"
            )
