"""How two finalizations of one model differ, quantizer by quantizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.core.quantizers import TensorQuantizer


@dataclass(frozen=True)
class Numbers:
    """What a quantizer computes with: its format and its calibrated tensors."""

    spec: QuantSpec | None
    state: Mapping[str, Tensor]

    @classmethod
    def of(cls, quantizer: TensorQuantizer) -> Numbers:
        """Return those of `quantizer` as it is now."""
        return cls(quantizer.spec, {name: tensor.clone() for name, tensor in quantizer.named_state().items()})


def differences(peer: Mapping[str, Numbers], ours: Mapping[str, Numbers]) -> Iterator[str]:
    """Yield a sentence for each quantizer whose numbers are not the peer's, by full name."""
    for name, theirs in peer.items():
        if ours[name].spec != theirs.spec:
            yield f"{name}: format {ours[name].spec} instead of {theirs.spec}"
        for part, tensor in theirs.state.items():
            changed = _describe(ours[name].state[part], tensor)
            if changed:
                yield f"{name}: {part} {changed}"


def _describe(ours: Tensor, theirs: Tensor) -> str:
    if torch.equal(ours, theirs) or ours.isnan().all():  # NaN: never calibrated
        return ""
    if ours.numel() == 1:
        return f"{ours.item():.6g} instead of {theirs.item():.6g}"
    return f"differs in {int((ours != theirs).sum())} of {ours.numel()} values"
