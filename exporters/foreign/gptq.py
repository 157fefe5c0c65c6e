"""The layout of GPTQ checkpoints, as AutoGPTQ and GPTQModel write them: INT codes packed along the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.exporters.foreign.group_size import group_size_of
from octavo.exporters.foreign.layout import IntegerFormat, Unpacked
from octavo.exporters.foreign.words import unpack_rows

_BITS = (2, 3, 4, 8)
_ADDED = {"gptq": 1, "gptq_v2": 0}  # to stored zero points: the first version subtracts 1 when it packs


class GptqLayout:
    """`qweight` int32 [in · bits / 32, out], `qzeros` int32 [groups, out · bits / 32], `scales` [groups, out], `g_idx`.

    As AutoGPTQ (https://github.com/AutoGPTQ/AutoGPTQ) and GPTQModel (https://github.com/ModelCloud/GPTQModel) write
    them; value = (code − zero) · scale. Version 1 stores zero − 1, modulo 2^bits. `g_idx` int32 [in] is the group of
    each input: neighbours share one, or (activation order) any inputs, for which no dialect but this has a place.

    Raises:
        CheckpointError: metadata describes another layout.
    """

    name = "GPTQ"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")
    optional: tuple[str, ...] = ("g_idx",)

    def __init__(self, config: Mapping[str, Any], file: Path) -> None:
        version, bits = config.get("checkpoint_format") or config.get("format") or "gptq", config.get("bits")
        if version not in _ADDED or bits not in _BITS:
            raise CheckpointError(
                f"{file}: GPTQ checkpoints of format {' or '.join(_ADDED)} with {', '.join(map(str, _BITS))} bits are "
                f"read, found format {version!r} with {bits!r} bits"
            )
        changed = [pattern for pattern in config.get("dynamic") or {} if not pattern.startswith("-:")]
        if changed:
            raise CheckpointError(
                f"{file}: GPTQ checkpoints of one format are read, found others for {changed}"
            )
        self._added = _ADDED[version]
        self._is_ordered = bool(config.get("desc_act"))
        self.format = IntegerFormat(bits, group_size_of(config, file), config.get("sym") is True)

    def unpack(self, tensors: Mapping[str, Tensor], where: str) -> Unpacked:
        """Return a layer's weight; see `Layout`."""
        bits = self.format.bits
        codes = unpack_rows(tensors["qweight"].T.contiguous(), bits, f"{where}qweight, transposed,")
        stored = unpack_rows(tensors["qzeros"], bits, f"{where}qzeros")
        self._check_order(tensors.get("g_idx"), codes.shape[1], where)
        return Unpacked(codes, tensors["scales"].T, ((stored + self._added) & (2**bits - 1)).T)

    def _check_order(self, groups: Tensor | None, num_inputs: int, where: str) -> None:
        """Refuse groups of scattered inputs."""
        if groups is None and not self._is_ordered:
            return
        expected = torch.arange(num_inputs) // (self.format.group_size or num_inputs)
        if groups is None or not torch.equal(groups.long(), expected):
            found = "no g_idx" if groups is None else f"g_idx {groups[:4].tolist()} …"
            raise CheckpointError(
                f"{where}g_idx must give groups of {self.format.group_size or num_inputs} neighbouring inputs, found "
                f"{found}: a checkpoint in activation order (desc_act), whose groups no other dialect has a place for. "
                "Quantize the original model again"
            )
