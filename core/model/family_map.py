"""Family maps: one YAML file per model family that names its modules' roles; the folder `families` holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from octavo.core.errors import ConfigError, listed
from octavo.core.model.description import BlockDescription, ModelDescription
from octavo.core.model.family_segments import declared_segments
from octavo.core.model.segments import RowSegments

_FOLDER = Path(__file__).with_name("families")


def describe_by_map(
    model: nn.Module, model_type: str, config: object, tower: str = ""
) -> ModelDescription | None:
    """Describe `model` by the map for `model_type`.

    Args:
        model: A model whose modules are named as its framework's checkpoints name them.
        model_type: The framework's name of the architecture (`config.model_type` in transformers).
        config: Its hyperparameters as attributes.
        tower: Where in `model` the described part lies, if it is one of several: what the map calls `model.layers`
            is then `<tower>.layers`.

    Returns:
        The description, or None when no map knows `model_type` in the variant that `config` asks for.

    Raises:
        ConfigError: the map names layers that this model does not have, or segments that are not those of a layer.
    """
    family = next((name for name in _maps_by_type().get(model_type, ()) if _fits(name, config)), None)
    if family is None:
        return None
    table = _within(tower, _load(family))
    modules = dict(model.named_modules())
    stacks = _stacks(table)
    if any(stack["blocks"] not in modules for stack in stacks):
        return None  # a bare backbone, or another head: the caller goes by name
    blocks = tuple(
        BlockDescription(prefix, table["kind"], _prefixed(prefix, stack["block_roles"]))
        for stack in stacks
        for prefix in _children(stack["blocks"], modules)
    )
    missing = [name for block in blocks for name in block.roles.values() if name not in modules]
    if missing:
        raise ConfigError(
            f"the family map {family!r} (model type {model_type!r}) names layers that this "
            f"{type(model).__name__} does not have: {listed(missing)}"
        )
    sizes = _hyperparameters(table["hyperparameters"], config)
    roles = {role: name for role, name in table["roles"].items() if name in modules}
    segments = declared_segments(family, table.get("segments", {}), blocks, sizes, modules)
    return _description(family, table, blocks, roles, sizes, segments)


def describe_by_sizes(
    model_type: str, sizes: Mapping[str, int], variant: Mapping[str, object] | None = None
) -> ModelDescription | None:
    """Describe a model of which only the sizes are known, by the map for `model_type`.

    Args:
        model_type: As in `describe_by_map`.
        sizes: As `ModelDescription.hyperparameters`, `num_layers` among them. Nothing is checked against layers.
        variant: What is known of the model's config besides. Of several maps the first that asks for nothing else is
            taken.

    Returns:
        The description, or None when no such map knows `model_type`, or it describes several stacks of blocks.
    """
    known = SimpleNamespace(**(variant or {}))
    names = [name for name in _maps_by_type().get(model_type, ()) if _fits(name, known)]
    if not names or "stacks" in _load(names[0]):
        return None
    table = _load(names[0])
    prefixes = [f"{table['blocks']}.{number}" for number in range(sizes["num_layers"])]
    blocks = tuple(
        BlockDescription(prefix, table["kind"], _prefixed(prefix, table["block_roles"]))
        for prefix in prefixes
    )
    segments = declared_segments(names[0], table.get("segments", {}), blocks, sizes, None)
    return _description(names[0], table, blocks, table["roles"], sizes, segments)


def known_model_types() -> list[str]:
    """Return the model types that some family map describes."""
    return sorted(_maps_by_type())


def _description(
    family: str,
    table: Mapping[str, Any],
    blocks: tuple[BlockDescription, ...],
    roles: Mapping[str, str],
    sizes: Mapping[str, int],
    segments: Mapping[str, RowSegments],
) -> ModelDescription:
    in_all_blocks = [_named(blocks, group) for group in table.get("same_input_in_all_blocks", ())]
    return ModelDescription(
        family=family,
        blocks=blocks,
        roles=roles,
        same_input=tuple(_named([block], group) for block in blocks for group in table["same_input"])
        + tuple(in_all_blocks),
        column_parallel=frozenset(_named(blocks, table["column_parallel"])),
        row_parallel=frozenset(_named(blocks, table["row_parallel"])),
        hyperparameters=sizes,
        segments=segments,
    )


def _fits(family: str, config: object) -> bool:
    """Whether a model has the layout that the map is about, where its config chooses one of several."""
    requires = _load(family).get("requires", {})
    return all(getattr(config, name, None) == value for name, value in requires.items())


def _stacks(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parts that have blocks: encoder and decoder, or the one that the table itself describes."""
    return list(table["stacks"].values()) if "stacks" in table else [table]


def _within(tower: str, table: dict[str, Any]) -> dict[str, Any]:
    """Return the table with `tower` in the place of the module that holds the blocks."""
    if not tower:
        return table
    root, _, rest = table["blocks"].partition(".")
    roles = {
        role: f"{tower}{name.removeprefix(root)}" if name.startswith(f"{root}.") else name
        for role, name in table["roles"].items()
    }
    return {**table, "blocks": f"{tower}.{rest}", "roles": roles}


def _children(name: str, modules: Mapping[str, nn.Module]) -> list[str]:
    return [f"{name}.{child}" for child, _ in modules[name].named_children()]


def _prefixed(prefix: str, roles: Mapping[str, str]) -> dict[str, str]:
    return {role: f"{prefix}.{path}" for role, path in roles.items()}


def _named(blocks: Iterable[BlockDescription], roles: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that have these roles; a block need not have all of them."""
    return tuple(block.roles[role] for block in blocks for role in roles if role in block.roles)


def _hyperparameters(names: Mapping[str, str | int], config: object) -> dict[str, int]:
    """Return the config's values; a number in the place of a name is the family's own."""
    values = {
        ours: getattr(config, theirs, None) if isinstance(theirs, str) else theirs
        for ours, theirs in names.items()
    }
    return {name: value for name, value in values.items() if isinstance(value, int)}


@lru_cache(maxsize=1)
def _maps_by_type() -> dict[str, list[str]]:
    maps: dict[str, list[str]] = {}
    for family in sorted(path.stem for path in _FOLDER.glob("*.yaml")):
        for model_type in _load(family)["model_types"]:
            maps.setdefault(model_type, []).append(family)
    return maps


@cache
def _load(family: str) -> dict[str, Any]:
    import yaml

    table: dict[str, Any] = yaml.safe_load((_FOLDER / f"{family}.yaml").read_text(encoding="utf-8"))
    return _extended(_load(table.pop("extends")), table) if "extends" in table else table


def _extended(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the entries of `own`, tables within tables too; null removes an entry."""
    merged = {**base, **own}
    for key in base.keys() & own.keys():
        if isinstance(base[key], dict) and isinstance(own[key], dict):
            merged[key] = _extended(base[key], own[key])
    return {key: value for key, value in merged.items() if value is not None}
