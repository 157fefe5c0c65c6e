"""Family maps: one YAML file per model family that names its modules' roles; the folder `families` holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from octavo.core.errors import ConfigError, listed
from octavo.core.model.description import BlockDescription, ModelDescription

_FOLDER = Path(__file__).with_name("families")


def describe_by_map(model: nn.Module, model_type: str, config: object) -> ModelDescription | None:
    """Describe `model` by the map for `model_type`.

    Args:
        model: A model whose modules are named as its framework's checkpoints name them.
        model_type: The framework's name of the architecture (`config.model_type` in transformers).
        config: Its hyperparameters as attributes.

    Returns:
        The description, or None when no map knows `model_type`.

    Raises:
        ConfigError: the map names blocks or layers that this model does not have.
    """
    family = _maps_by_type().get(model_type)
    if family is None:
        return None
    table = _load(family)
    modules = dict(model.named_modules())
    if table["blocks"] not in modules:
        return None  # a bare backbone, or another head: the caller goes by name
    prefixes = [f"{table['blocks']}.{name}" for name, _ in modules[table["blocks"]].named_children()]
    blocks = tuple(
        BlockDescription(prefix, table["kind"], _prefixed(prefix, table["block_roles"]))
        for prefix in prefixes
    )
    missing = [name for block in blocks for name in block.roles.values() if name not in modules]
    if missing:
        raise ConfigError(
            f"the family map {family!r} (model type {model_type!r}) names layers that this "
            f"{type(model).__name__} does not have: {listed(missing)}"
        )
    return ModelDescription(
        family=family,
        blocks=blocks,
        roles={role: name for role, name in table["roles"].items() if name in modules},
        same_input=tuple(
            tuple(block.roles[r] for r in group) for block in blocks for group in table["same_input"]
        ),
        column_parallel=_named(blocks, table["column_parallel"]),
        row_parallel=_named(blocks, table["row_parallel"]),
        hyperparameters=_hyperparameters(table["hyperparameters"], config),
    )


def known_model_types() -> list[str]:
    """Return the model types that some family map describes."""
    return sorted(_maps_by_type())


def _prefixed(prefix: str, roles: Mapping[str, str]) -> dict[str, str]:
    return {role: f"{prefix}.{path}" for role, path in roles.items()}


def _named(blocks: Iterable[BlockDescription], roles: Iterable[str]) -> frozenset[str]:
    wanted = set(roles)
    return frozenset(name for block in blocks for role, name in block.roles.items() if role in wanted)


def _hyperparameters(names: Mapping[str, str], config: object) -> dict[str, int]:
    values = {ours: getattr(config, theirs, None) for ours, theirs in names.items()}
    return {name: value for name, value in values.items() if isinstance(value, int)}


@lru_cache(maxsize=1)
def _maps_by_type() -> dict[str, str]:
    families = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    return {model_type: family for family in families for model_type in _load(family)["model_types"]}


@cache
def _load(family: str) -> dict[str, Any]:
    import yaml

    table: dict[str, Any] = yaml.safe_load((_FOLDER / f"{family}.yaml").read_text(encoding="utf-8"))
    if "extends" not in table:
        return table
    base = _load(table.pop("extends"))
    roles = {**base["block_roles"], **table.get("block_roles", {})}
    return {**base, **table, "block_roles": roles}
