"""Sites where smoothing folds: a tensor whose maker and readers are known, and can be scaled against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from octavo.core.calibration.collectors import collecting
from octavo.core.calibration.norm_kind import norm_kind
from octavo.core.calibration.solvers.folding import tied_to_heads, value_rows
from octavo.core.errors import FOREIGN_FAILURES
from octavo.core.graph.scaled_outputs import arrives
from octavo.core.graph.sole_readers import SoleReaders
from octavo.core.model.description import BlockDescription, ModelDescription
from octavo.core.plugins import plugins

VALUES, UP = "attention.v", "mlp.up"
_READERS = {VALUES: "attention.out", UP: "mlp.down"}


@dataclass(frozen=True)
class FoldingSite:
    """A tensor that one module makes and only these layers read.

    Attributes:
        role: The maker's: `norm.attention`, `norm.mlp`, `attention.v` or `mlp.up`.
        maker: Its name.
        readers: Names of the layers.
        heads: (KV heads, head_dim) of values, which query heads share; None elsewhere.
    """

    role: str
    maker: str
    readers: tuple[str, ...]
    heads: tuple[int, int] | None = None

    @property
    def is_norm(self) -> bool:
        """Whether the maker is a norm."""
        return self.role.startswith("norm.")

    def tied(self, magnitudes: Tensor) -> Tensor:
        """Return magnitudes [in] equal where the maker can only give one factor: the largest of them."""
        return magnitudes if self.heads is None else tied_to_heads(magnitudes, *self.heads, largest=True)

    def spread(self, factor: Tensor, width: int) -> Tensor:
        """Return the factor on what the readers read, [width], for one on what the maker makes, [out]."""
        if self.heads is None:
            return factor
        kv_heads, head_dim = self.heads
        return factor.reshape(kv_heads, 1, head_dim).expand(-1, width // factor.numel(), -1).reshape(-1)

    def made(self, factor: Tensor) -> Tensor:
        """Return the factor on what the maker makes, [out], for one on what the readers read, [in]."""
        return factor if self.heads is None else value_rows(factor, *self.heads)


def folding_sites(model: nn.Module) -> tuple[list[FoldingSite], list[str]]:
    """Return the sites of a quantized model in the order of its blocks, and sentences that say what is left out.

    Roles come from the family map. A forward pass shows who reads what norms make; two more show that factors on
    values, and on what gates multiply, arrive at the layer that reads them.
    """
    description, inputs = plugins().describe_model(model), plugins().tiny_inputs(model)
    if description is None or inputs is None:
        return [], [
            "no family map describes the model, or no plugin knows its inputs, so that nothing is folded"
        ]
    modules = dict(model.named_modules())
    notes: list[str] = []
    with collecting(model, {}):  # nothing is rounded
        norms = _norm_sites(model, description, modules, inputs, notes)
        linears = [
            site for role in _READERS for site in _linear_sites(model, description, role, inputs, notes)
        ]
    order = {block.name: index for index, block in enumerate(description.blocks)}
    return sorted([*norms, *linears], key=lambda site: _position(site, order)), notes


def _position(site: FoldingSite, order: Mapping[str, int]) -> int:
    return next(index for block, index in order.items() if site.maker.startswith(f"{block}."))


def _norm_sites(
    model: nn.Module,
    description: ModelDescription,
    modules: Mapping[str, nn.Module],
    inputs: Mapping[str, Any],
    notes: list[str],
) -> list[FoldingSite]:
    roles = {
        name: role
        for block in description.blocks
        for role, name in block.roles.items()
        if role.startswith("norm.")
    }
    layers = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    readers = SoleReaders({name: modules[name] for name in roles}, layers)
    try:
        readers.watch(model, inputs)
    except torch.OutOfMemoryError:
        raise
    except FOREIGN_FAILURES as error:
        notes.append(f"nothing is folded into norms: the model does not run on its smallest inputs ({error})")
        return []
    found = []
    for name, role in roles.items():
        reading = readers.readers_of(name)
        if not reading or name in readers.used_elsewhere:
            notes.append(f"nothing is folded into {name}: not only linear layers read what it makes")
        elif norm_kind(modules[name]) is None:
            notes.append(
                f"nothing is folded into {name}: it does not multiply by its weight or by 1 + its weight"
            )
        else:
            found.append(FoldingSite(role, name, reading))
    return found


def _linear_sites(
    model: nn.Module, description: ModelDescription, role: str, inputs: Mapping[str, Any], notes: list[str]
) -> list[FoldingSite]:
    """Return the sites of a role, or none and a note where factors do not arrive."""
    sites = [site for block in description.blocks for site in _declared(model, description, block, role)]
    if not sites:
        return []
    made: dict[nn.Module, Tensor] = {}
    read: dict[nn.Module, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for site in sites:
        maker, reader = (_linear(model, name) for name in (site.maker, site.readers[0]))
        exponents = torch.randint(-2, 3, (maker.out_features,), generator=generator)
        factor = torch.exp2(exponents.float()).to(maker.weight.device)
        made[maker], read[reader] = factor, site.spread(factor, reader.in_features)
    try:
        passes = arrives(model, inputs, made, read)
    except torch.OutOfMemoryError:
        raise
    except FOREIGN_FAILURES as error:
        notes.append(f"nothing is folded into {role}: the model does not run so ({error})")
        return []
    if not passes:
        notes.append(
            f"nothing is folded into {role}: factors on what these layers make do not arrive as they are"
        )
    return sites if passes else []


def _linear(model: nn.Module, name: str) -> nn.Linear:
    return cast(nn.Linear, model.get_submodule(name))


def _declared(
    model: nn.Module, description: ModelDescription, block: BlockDescription, role: str
) -> Iterator[FoldingSite]:
    names = (block.roles.get(role), block.roles.get(_READERS[role]))
    if names[0] is None or names[1] is None:
        return
    maker, reader = (model.get_submodule(name) for name in names if name is not None)
    if not isinstance(maker, nn.Linear) or not isinstance(reader, nn.Linear):
        return
    heads = _heads(maker, reader, description.hyperparameters) if role == VALUES else None
    if heads is not None or maker.out_features == reader.in_features:
        yield FoldingSite(role, names[0], (names[1],), heads)


def _heads(values: nn.Linear, out: nn.Linear, hyperparameters: Mapping[str, int]) -> tuple[int, int] | None:
    kv_heads = hyperparameters.get("num_kv_heads") or hyperparameters.get("num_heads")
    if not kv_heads or values.out_features % kv_heads or out.in_features % values.out_features:
        return None
    return kv_heads, values.out_features // kv_heads
