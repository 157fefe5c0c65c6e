"""The recipe that a model trains by, as a buffer of it, so that every checkpoint has it and resuming checks it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from octavo.core.errors import CheckpointError
from octavo.core.modules import tensor_quantizers

BUFFER = "octavo_recipe"
_FACTORS = ("pre_quant_scale", "low_rank_down", "low_rank_up", "bias_value")


class RecipeGuard:
    """Puts a recipe into a model's state dict, and compares it with that of each one that is loaded.

    Attributes:
        was_loaded: A state dict with this very recipe was loaded.
    """

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any]) -> None:
        self.was_loaded = False
        self._recipe = json.loads(json.dumps(recipe, sort_keys=True))
        self._model = model
        self._handle: RemovableHandle = model.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            self._check
        )
        device = next((parameter.device for parameter in model.parameters()), None)
        model.register_buffer(BUFFER, _encoded(self._recipe, device))

    def remove(self) -> None:
        """Take the recipe off the model, which is a quantized one like any other then."""
        self._handle.remove()
        del self._model._buffers[BUFFER]

    def check_loaded(self, step: int) -> None:
        """Check that a run that is at `step` before its first one was resumed from a checkpoint of this recipe.

        Raises:
            CheckpointError: the checkpoint has no recipe.
        """
        if step > 0 and not self.was_loaded:
            raise CheckpointError(
                f"training resumes at step {step} from a checkpoint that was made without Octavo's quantizers; start "
                "with its weights as a new run, or leave the quantizers out"
            )

    def _check(self, model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        found = state_dict.get(prefix + BUFFER)
        if found is not None:
            differences = "; ".join(_differences(_decoded(found), self._recipe))
            if differences:
                raise CheckpointError(
                    f"the checkpoint was trained by another recipe: {differences}. Resume with the recipe it was "
                    "made with, or start a new run"
                )
            self.was_loaded = True
        _make_room(model, state_dict, prefix)


def _make_room(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Give quantizers the tensors that calibration had given those of the checkpoint."""
    for name, quantizer in tensor_quantizers(model):
        found = {
            kind: state_dict.get(f"{prefix}{name}.{kind}") for kind in (*_FACTORS, "amax", "global_amax")
        }
        for kind in _FACTORS:
            tensor = found[kind]
            if tensor is not None and getattr(quantizer, kind) is None:
                setattr(quantizer, kind, torch.full_like(tensor, torch.nan))
        if found["amax"] is not None and quantizer.spec is not None and quantizer.spec.dynamic:
            scales = {kind: tensor for kind in ("amax", "global_amax") if (tensor := found[kind]) is not None}
            quantizer.make_static(**scales)


def _encoded(recipe: Mapping[str, Any], device: torch.device | None) -> Tensor:
    return torch.tensor(list(json.dumps(recipe, sort_keys=True).encode()), dtype=torch.uint8, device=device)


def _decoded(buffer: Tensor) -> dict[str, Any]:
    try:
        recipe = json.loads(bytes(buffer.tolist()))
    except ValueError:
        recipe = None
    if not isinstance(recipe, dict):
        raise CheckpointError(f"the checkpoint's {BUFFER} is damaged: it holds no JSON object")
    return recipe


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is {_shown(found.get(name))} there and {_shown(wanted.get(name))} here"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]


def _shown(value: Any, limit: int = 200) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else text[:limit] + " …"
