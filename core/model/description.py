"""ModelDescription: what a model is made of, in canonical roles, whatever framework it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from octavo.core.model.segments import RowSegments


@dataclass(frozen=True)
class BlockDescription:
    """One repeated block.

    Attributes:
        name: Its module's name, `model.layers.0`.
        kind: `attention`, `moe`, `mamba`, …
        roles: Canonical role (`attention.q`, `mlp.down`, `norm.mlp`, …) to module name.
    """

    name: str
    kind: str
    roles: Mapping[str, str]


@dataclass(frozen=True)
class ModelDescription:
    """A model in canonical roles.

    Attributes:
        family: Name of the family map that describes it.
        blocks: Its blocks in the order they run.
        roles: Roles outside the blocks (`embedding`, `norm.final`, `lm_head`) to module names.
        same_input: Groups of layers that read the same tensor, by module name.
        column_parallel: Layers that tensor parallelism splits along the output dim.
        row_parallel: Layers that it splits along the input dim.
        segments: Fused layers, by module name, to what their rows stand for.
        hyperparameters: `hidden_size`, `num_heads`, `num_kv_heads`, `head_dim`, … where the family has them.
    """

    family: str
    blocks: tuple[BlockDescription, ...]
    roles: Mapping[str, str]
    same_input: tuple[tuple[str, ...], ...] = ()
    column_parallel: frozenset[str] = frozenset()
    row_parallel: frozenset[str] = frozenset()
    segments: Mapping[str, RowSegments] = field(default_factory=dict)
    hyperparameters: Mapping[str, int] = field(default_factory=dict)

    def renamed(self, names: Mapping[str, str]) -> ModelDescription:
        """Return the description of the same model whose modules have other names; those not in `names` keep theirs."""
        blocks = tuple(
            replace(block, name=names.get(block.name, block.name), roles=_values_renamed(block.roles, names))
            for block in self.blocks
        )
        return replace(
            self,
            blocks=blocks,
            roles=_values_renamed(self.roles, names),
            same_input=tuple(tuple(names.get(name, name) for name in group) for group in self.same_input),
            column_parallel=frozenset(names.get(name, name) for name in self.column_parallel),
            row_parallel=frozenset(names.get(name, name) for name in self.row_parallel),
            segments={names.get(name, name): segments for name, segments in self.segments.items()},
        )


def _values_renamed(roles: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {role: names.get(name, name) for role, name in roles.items()}
