"""Which quantizers of a Hugging Face model those of its Megatron model are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.adapters.megatron_core.conversion.original import Original
from octavo.adapters.megatron_core.conversion.tensors import MegatronTensor
from octavo.core.errors import UnsupportedError, listed

CORE_ATTENTION = ".self_attention.core_attention"


@dataclass(frozen=True)
class Piece:
    """Rows of a Hugging Face parameter.

    Attributes:
        layer: The Megatron layer that has them.
        tensor: Its weight.
        part: Which of the weight's parts.
    """

    layer: str
    tensor: MegatronTensor
    part: int


@dataclass
class Site:
    """One quantized parameter of a Hugging Face model.

    Attributes:
        module: Its layer.
        weight_quantizer: Name of its quantizer.
        input_quantizer: Name of the quantizer of what it is multiplied with.
        is_stacked: Whether it is a stack of weights.
        matrices: The pieces of each weight of the stack, or of the only one, by (segment, first row).
    """

    module: str
    weight_quantizer: str
    input_quantizer: str
    is_stacked: bool
    matrices: dict[int, dict[tuple[int, int], Piece]] = field(default_factory=dict)

    @property
    def pieces(self) -> list[list[Piece]]:
        """The pieces in the order of the parameter."""
        return [[piece for _, piece in sorted(rows.items())] for _, rows in sorted(self.matrices.items())]

    @property
    def layers(self) -> list[str]:
        """The Megatron layers, each once."""
        return list(dict.fromkeys(piece.layer for rows in self.pieces for piece in rows))


def weight_sites(original: Original, layers: Mapping[str, Any]) -> list[Site]:
    """Return the parameters that quantized Megatron layers are; attention and norms, which have none, are left out.

    Raises:
        UnsupportedError: a quantized layer has no counterpart.
    """
    places = original.skeleton.layout.places()
    sites: dict[str, Site] = {}
    unknown = []
    for layer in sorted(name for name, one in layers.items() if "weight_quantizer" in one["quantizers"]):
        tensor = original.tensors.get(f"{layer}.weight")
        if tensor is None:
            unknown.append(layer)
            continue
        for number, part in enumerate(tensor.parts):
            place = places[part.name]
            site = sites.setdefault(place.name, _site(place.name, place.index is not None))
            rows = site.matrices.setdefault(place.index or 0, {})
            rows[place.segment, part.start] = Piece(layer, tensor, number)
    if unknown:
        raise UnsupportedError(
            f"{listed(unknown)} are quantized and have no counterpart in the Hugging Face model of "
            f"{original.directory}; leave them out of the config"
        )
    return list(sites.values())


def attention_sites(original: Original, layers: Mapping[str, Any]) -> dict[str, str]:
    """Return {core attention layer: the Hugging Face attention layer} of those that are quantized."""
    found = {}
    for number, block in enumerate(original.description.blocks):
        name = f"decoder.layers.{number}{CORE_ATTENTION}"
        if name in layers:
            found[name] = block.roles["attention.out"].rpartition(".")[0]
    return found


def _site(parameter: str, is_stacked: bool) -> Site:
    module, _, own = parameter.rpartition(".")
    prefix = f"{own}_" if is_stacked else ""
    return Site(module, f"{prefix}weight_quantizer", f"{prefix}input_quantizer", is_stacked)
