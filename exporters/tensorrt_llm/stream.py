"""The stream: every tensor of a checkpoint as it is on one rank, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.errors import ExportError
from octavo.core.model.description import ModelDescription
from octavo.core.model.finite import is_finite
from octavo.core.packed import PackedChain, PackedTensor
from octavo.core.packed.rows import join_rows, take_rows
from octavo.exporters.tensorrt_llm.families import Family
from octavo.exporters.tensorrt_llm.formats import Format
from octavo.exporters.tensorrt_llm.joined import (
    HEAD,
    JoinedLayer,
    Rows,
    block_layers,
    block_name,
    head_layer,
    outer_modules,
    plain_modules,
)
from octavo.exporters.tensorrt_llm.source import WeightSource
from octavo.exporters.tensorrt_llm.spelling import spell, spell_cache, spell_inputs, spell_stack

_ROUTER = ".router"  # which experts a token goes to is computed in fp32


@dataclass(frozen=True)
class Stream:
    """The tensors of one checkpoint.

    Attributes:
        source: Where the tensors come from.
        description: The model in canonical roles, its modules called as in the source.
        family: What TensorRT-LLM says of models of its kind.
        formats: How each quantized linear layer is stored, by its name in the checkpoint.
        dtype: Dtype of everything that is not quantized, but for routers and scales.
        vocab_size: Rows that token embedding and head get: zeros are appended.
        every_factor: Write a factor of ones where a reader wants one and the layer has none.
    """

    source: WeightSource
    description: ModelDescription
    family: Family
    formats: Mapping[str, Format]
    dtype: torch.dtype
    vocab_size: int
    every_factor: bool = False

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor), blocks counted over all stages.

        Raises:
            ExportError: a tensor is missing, not finite in `dtype`, or layers that are joined do not fit together.
        """
        for number, block in enumerate(self.description.blocks):
            for layer in block_layers(self.description, number, self.source, self.family.names):
                yield from self._linear(layer)
            for name, module in plain_modules(self.description, number, self.family.names):
                yield from self._plain(name, module)
            cache = spell_cache(self.source.cache(block.name))
            yield from ((f"{block_name(number)}.attention.{name}", scale) for name, scale in cache.items())
        for name, module in outer_modules(self.description):
            yield from self._plain(name, module)
        yield from self._head()

    def _head(self) -> Iterator[tuple[str, Tensor]]:
        if self.family.has_shared_head(self.source.config):
            return
        is_plain = HEAD not in self.formats
        for name, tensor in self._linear(head_layer(self.description, self.source)):
            yield name, self._padded(tensor) if is_plain else tensor

    def _linear(self, layer: JoinedLayer) -> Iterator[tuple[str, Tensor]]:
        weights = [self._joined(part, "weight") for part in layer.parts]
        known = self.formats.get(layer.name)
        packed = [weight for weight in weights if not isinstance(weight, Tensor)]
        if known is None or not packed:
            plain = [self._as_dtype(layer.name, weight) for weight in weights if isinstance(weight, Tensor)]
            yield f"{layer.name}.weight", torch.stack(plain) if layer.stacks_experts else plain[0]
        else:
            yield from self._quantized(layer, packed, known)
        if f"{layer.parts[0][0].layer}.bias" in self.source:
            if layer.stacks_experts:
                raise ExportError(
                    f"{layer.layers[0]} has a bias, and experts of TensorRT-LLM checkpoints have none"
                )
            bias = self._joined(layer.parts[0], "bias")
            assert isinstance(bias, Tensor)  # noqa: S101 (only weights are packed)
            yield f"{layer.name}.bias", self._as_dtype(f"{layer.name}.bias", bias)

    def _quantized(
        self, layer: JoinedLayer, packed: list[PackedTensor | PackedChain], known: Format
    ) -> Iterator[tuple[str, Tensor]]:
        matrices = [weight for weight in packed if isinstance(weight, PackedTensor)]
        tensors = spell_stack(matrices, known) if layer.stacks_experts else spell(packed[0], known)
        states = [state for name in layer.layers if (state := self.source.inputs(name)) is not None]
        tensors |= spell_inputs(states, self.dtype)
        if self.every_factor and known.needs_factor and "prequant_scaling_factor" not in tensors:
            tensors["prequant_scaling_factor"] = torch.ones(_length(packed[0]), dtype=self.dtype)
        yield from ((f"{layer.name}.{suffix}", tensor) for suffix, tensor in tensors.items())

    def _joined(self, part: tuple[Rows, ...], suffix: str) -> Tensor | PackedTensor | PackedChain:
        return join_rows([self._rows(rows, suffix) for rows in part])

    def _rows(self, rows: Rows, suffix: str) -> Tensor | PackedTensor | PackedChain:
        tensor = self._tensor(f"{rows.layer}.{suffix}")
        if suffix == "weight" and isinstance(tensor, Tensor) and rows.layer not in self._untransposed:
            tensor = tensor.transpose(0, 1) if self.family.transposed else tensor
        return tensor if rows.index is None else take_rows(tensor, rows.index)

    @property
    def _untransposed(self) -> set[str]:
        """Heads are [out, in] in every family."""
        return {self.description.roles.get(role, "") for role in ("lm_head", "embedding")}

    def _plain(self, name: str, module: str) -> Iterator[tuple[str, Tensor]]:
        for suffix in ("weight", "bias"):
            if f"{module}.{suffix}" not in self.source:
                continue
            tensor = self._tensor(f"{module}.{suffix}")
            if not isinstance(tensor, Tensor):
                raise ExportError(
                    f"{module} is quantized, and TensorRT-LLM checkpoints have {name} plain; leave it out "
                    f"({{'quantizer_name': '*{module}.*', 'enable': False}})"
                )
            if suffix == "weight" and self.family.norm_adds_one and ("layernorm" in name or ".ln_" in name):
                tensor = tensor.float() + 1.0  # TensorRT-LLM multiplies by the weight itself
            if "position_embedding" in name:
                tensor = tensor[self.family.skipped_positions :]
            tensor = self._as_dtype(f"{name}.{suffix}", tensor)
            yield f"{name}.{suffix}", self._padded(tensor) if "vocab_embedding" in name else tensor

    def _tensor(self, name: str) -> Tensor | PackedTensor | PackedChain:
        if name not in self.source:
            raise ExportError(
                f"the model has no tensor {name!r}, which TensorRT-LLM checkpoints of its family need"
            )
        return self.source.tensor(name)

    def _as_dtype(self, name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.to(torch.float32 if _ROUTER in name else self.dtype)
        if not is_finite(tensor):
            raise ExportError(
                f"{name} has NaN or infinite values as {tensor.dtype}; repair the model, or choose a dtype with a "
                "larger range"
            )
        return tensor.contiguous()

    def _padded(self, tensor: Tensor) -> Tensor:
        """Append zero rows, so that INT4 readers find a multiple of 64."""
        missing = self.vocab_size - tensor.shape[0]
        return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing > 0 else tensor


def _length(weight: PackedTensor | PackedChain) -> int:
    return (weight.first if isinstance(weight, PackedChain) else weight).shape[-1]
