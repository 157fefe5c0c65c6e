"""Fingerprints: short hashes that tell models, and calibration data, apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LENGTH = 16  # hex digits
_NUM_SAMPLES = 1024
# Of a tensor's own size, so that bits can be added up exactly, in any order.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What a config says of the place and the program that loaded it, not of the model.
_CIRCUMSTANCES = ("transformers_version", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True)
class ModelFingerprint:
    """Hashes of a model, 16 hex digits each.

    Attributes:
        config: Its class and, where it has one, its config.
        weights: Names, shapes and dtypes of its saved tensors.
        values: Their values: all added up as integers, which any changed value changes, and some samples.
    """

    config: str
    weights: str
    values: str

    @classmethod
    def of(cls, model: nn.Module) -> ModelFingerprint:
        """Return the fingerprint of a plain model; reads each tensor once."""
        tensors = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
        weights = {name: [list(t.shape), str(t.dtype)] for name, t in tensors.items()}
        values = {name: _digest_of_values(t) for name, t in tensors.items()}
        return cls(_hash(_config_of(model)), _hash(weights), _hash(values))

    def differences(self, other: ModelFingerprint) -> list[str]:
        """Return the parts that differ, in words."""
        words = {
            "config": "its class or config",
            "weights": "names, shapes or dtypes of its weights",
            "values": "values of its weights",
        }
        return [text for part, text in words.items() if getattr(self, part) != getattr(other, part)]

    def __str__(self) -> str:
        return ", ".join(f"{part} {digest}" for part, digest in asdict(self).items())


class DataHash:
    """A running hash of the tensors that a model is called with."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, value: Any) -> None:
        """Take in an argument; tensors count, also those inside of sequences and mappings."""
        if isinstance(value, Tensor):
            self._hash.update(f"{tuple(value.shape)} {value.dtype}".encode())
            self._hash.update(_bytes_of(value))
        elif isinstance(value, Mapping):
            for key, part in value.items():
                self._hash.update(str(key).encode())
                self.add(part)
        elif isinstance(value, (tuple, list)):
            for part in value:
                self.add(part)

    def digest(self) -> str:
        """Return the hash of what was seen, 16 hex digits."""
        return self._hash.hexdigest()[:_LENGTH]


@contextmanager
def hashing_calls(model: nn.Module) -> Iterator[DataHash]:
    """Hash what `model` is called with, for the time of a context."""
    seen = DataHash()

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.add(args)
        seen.add(kwargs)

    with model.register_forward_pre_hook(look, with_kwargs=True):
        yield seen


def _config_of(model: nn.Module) -> Any:
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    config = to_dict() if callable(to_dict) else {}
    known = {
        key: value for key, value in config.items() if not key.startswith("_") and key not in _CIRCUMSTANCES
    }
    modules = [(name, type(module).__name__) for name, module in model.named_modules()]
    return [modules, known]


def _hash(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


@torch.no_grad()
def _digest_of_values(tensor: Tensor) -> str:
    if tensor.is_meta or tensor.element_size() not in _INTEGERS:
        return "unknown"
    bits = tensor.detach().view(_INTEGERS[tensor.element_size()])
    flat = bits.flatten()
    samples = flat[:: max(1, len(flat) // _NUM_SAMPLES)]
    added = int(flat.sum(dtype=torch.int64))  # wraps around, the same in every order
    return f"{added} {hashlib.sha256(_bytes_of(samples)).hexdigest()[:_LENGTH]}"


def _bytes_of(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return plain.numpy().tobytes()
