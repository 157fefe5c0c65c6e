"""Where transformers' checkpoints hold a model's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from octavo.core.errors import UnsupportedError, listed
from octavo.core.model.checkpoint_layout import CheckpointLayout, Parts


def layout_in_checkpoint(model: Any, names: Sequence[str]) -> CheckpointLayout:
    """Return under which names `save_pretrained` would write each parameter, stacked experts apart.

    Raises:
        UnsupportedError: a parameter is stored in another form than whole or as experts' equal row segments.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    stacked = {name: shapes[name][0] for name in names if len(shapes[name]) == 3}
    parts = _parts(model, stacked)
    whole = _names(model, {name: shapes[name] for name in names if name not in parts})
    other = [name for name in names if name not in parts and name not in whole]
    if other:
        raise UnsupportedError(
            f"transformers stores {len(other)} parameters of this {type(model).__name__} in another form than the "
            f"model has them ({listed(other)}); such parameters cannot be exported or read yet"
        )
    return CheckpointLayout(whole, parts)


def _names(model: Any, shapes: Mapping[str, torch.Size]) -> dict[str, str]:
    """Return the names of parameters that are stored whole.

    Tensors without values go through transformers' own conversion, and are recognised on the other side.
    """
    from transformers.core_model_loading import revert_weight_conversion

    markers = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    own_names = {id(marker): name for name, marker in markers.items()}
    converted = revert_weight_conversion(model, markers)
    return {own_names[id(marker)]: new for new, marker in converted.items() if id(marker) in own_names}


def _parts(model: Any, stacked: Mapping[str, int]) -> dict[str, Parts]:
    """Return how parameters that stack so many experts are taken apart, those left whole not included.

    Small numbered tensors go through the same conversion: the numbers that come out of it tell which expert, and
    which of equal row segments, each piece is.
    """
    from transformers.core_model_loading import revert_weight_conversion

    first, markers = 0, {}
    for name, number in stacked.items():
        markers[name] = torch.arange(first, first + 4 * number).reshape(number, 2, 2)
        first += 4 * number
    converted = revert_weight_conversion(model, dict(markers)) if markers else {}
    # What is still a stack was left whole, also a stack of one.
    pieces = {tuple(piece.flatten().tolist()): new for new, piece in converted.items() if piece.dim() < 3}
    parts = {name: _parts_of(marker, pieces) for name, marker in markers.items()}
    return {name: found for name, found in parts.items() if found is not None}


def _parts_of(marker: torch.Tensor, pieces: Mapping[tuple[int, ...], str]) -> Parts | None:
    for num_segments in (1, 2):
        numbers = [
            [tuple(segment.flatten().tolist()) for segment in matrix.chunk(num_segments)] for matrix in marker
        ]
        if all(number in pieces for segments in numbers for number in segments):
            return tuple(tuple(pieces[number] for number in segments) for segments in numbers)
    return None
