"""`add_adapters`: PEFT's adapters over a quantized model, whose targets are checked by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from octavo.core.errors import ConfigError, listed, nearest
from octavo.core.modules import packed_layers
from octavo.core.modules.packed_parameter import PackedParameter
from octavo.core.quantizers import SequentialQuantizer, TensorQuantizer

_OWN = (TensorQuantizer, SequentialQuantizer, PackedParameter)
_ALL_LINEAR = "all-linear"


def add_adapters(model: nn.Module, config: Any, **options: Any) -> Any:
    """Return `peft.get_peft_model(model, config, **options)`, with every target of `config` checked before.

    Two ways to put LoRA over a quantized layer (arXiv:2106.09685):

    * `target_modules=["q_proj"]`: the adapter's output is added to that of the rounded layer, whose weight stays. Goes
      over packed weights, too (arXiv:2305.14314).
    * `target_modules=[], target_parameters=["q_proj.weight"]`: the adapter is added to the weight, and the sum is
      rounded. `merge_adapters` then gives exactly what was trained. Needs dense weights.

    Args:
        model: A model that `octavo.quantize` or `octavo.compress` returned.
        config: A `peft.PeftConfig`.
        options: Passed on to PEFT.

    Raises:
        ConfigError: a target names nothing in the model, or only quantizers or codes of it.
    """
    import peft  # on use only

    own = dict(_own_modules(model))
    _check_modules(model, getattr(config, "target_modules", None), own)
    _check_parameters(model, getattr(config, "target_parameters", None), own)
    return peft.get_peft_model(model, config, **options)


def _own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield quantizers, packed parameters and what is in them."""
    roots = [name for name, module in model.named_modules() if isinstance(module, _OWN)]
    for root in roots:
        yield from model.get_submodule(root).named_modules(prefix=root)


def _check_modules(model: nn.Module, targets: Any, own: dict[str, nn.Module]) -> None:
    if not targets or targets == _ALL_LINEAR:
        return
    names = [name for name, _ in model.named_modules() if name]
    layers = [name for name in names if name not in own]
    for target in [targets] if isinstance(targets, str) else targets:
        found = [name for name in names if _matches(name, target, isinstance(targets, str))]
        if not found:
            raise ConfigError(
                f"target_modules has {target!r}, and no module of the model has that name."
                f"{nearest(target, _endings(layers, target))}"
            )
        if hit := [name for name in found if name in own]:
            raise ConfigError(
                f"target_modules has {target!r}, which names {len(hit)} quantizers or packed weights (first "
                f"{hit[0]!r}); adapters go over layers. Name these, or set exclude_modules=r'.*(quantizer|packed).*'"
            )


def _check_parameters(model: nn.Module, targets: Iterable[str] | None, own: dict[str, nn.Module]) -> None:
    if not targets:
        return
    packed = [
        f"{name}.{parameter}" for name, layer in packed_layers(model) for parameter in layer.packed_parameters
    ]
    names = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] not in own]
    inside = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] in own]
    for target in targets:
        if hit := [name for name in (*packed, *inside) if _matches(name, target)]:
            raise ConfigError(
                f"target_parameters has {target!r}, which is held in codes ({listed(hit, 2)}), and nothing can be "
                "added to these. Put adapters over the layer by target_modules, or call octavo.decompress(model) first"
            )
        if not any(_matches(name, target) for name in names):
            raise ConfigError(
                f"target_parameters has {target!r}, and no parameter of the model has that name."
                f"{nearest(target, _endings(names, target))}"
            )


def _matches(name: str, target: str, is_pattern: bool = False) -> bool:
    """Return whether PEFT takes `target` for this name: a whole one, the end of one, or a pattern for it."""
    if is_pattern:
        return re.fullmatch(target, name) is not None
    return name == target or name.endswith(f".{target}")


def _endings(names: Iterable[str], target: str) -> set[str]:
    """Return the ends of names with as many parts as `target` has."""
    parts = target.count(".") + 1
    return {".".join(name.split(".")[-parts:]) for name in names}
