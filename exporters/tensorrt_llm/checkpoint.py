"""Checkpoint: all that is written of one model, as for one rank: tensors, config.json, quant_cfg.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import ExportError, listed
from octavo.core.model.description import ModelDescription
from octavo.core.model.exporter import LayerFormat, Verdict
from octavo.exporters.tensorrt_llm.completeness import check_complete
from octavo.exporters.tensorrt_llm.config import ModelFacts, peer_config, reader_config
from octavo.exporters.tensorrt_llm.families import Family
from octavo.exporters.tensorrt_llm.formats import Format, format_for
from octavo.exporters.tensorrt_llm.joined import HEAD, JoinedLayer, block_layers, head_layer, plain_modules
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.quantization import quantization_metadata, stage_metadata
from octavo.exporters.tensorrt_llm.source import WeightSource
from octavo.exporters.tensorrt_llm.stages import to_local
from octavo.exporters.tensorrt_llm.stream import Stream

_INT4_VOCABULARY = 64  # readers of INT4 checkpoints want the vocabulary to be a multiple


class Checkpoint:
    """What is written of one model.

    Args:
        source: Where its tensors come from.
        description: The model in canonical roles, its modules called as in the source.
        family: What TensorRT-LLM says of models of its kind.
        dtype: Dtype of everything that is not quantized.
        cache: Name of the format of keys and values, or None.
        for_reader: Write what the reader takes, where that differs from what the peer writes.

    Raises:
        ExportError: the model has tensors without a place, layers that are joined have several formats, or the reader
            is known to refuse one.
    """

    def __init__(
        self,
        source: WeightSource,
        description: ModelDescription,
        family: Family,
        dtype: torch.dtype,
        cache: str | None,
        for_reader: bool,
    ) -> None:
        self._source, self._description, self._family = source, description, family
        self._dtype, self._cache, self._for_reader = dtype, cache, for_reader
        self._layers = list(self._all_layers())
        self._formats = {layer.name: self._format(layer) for layer in self._layers}
        self._known = {name: known for name, (known, _) in self._formats.items() if known is not None}
        check_complete(source, description, self._layers, family.names)
        self._check_head()
        if for_reader:
            self._check_readable()
        self.config = self._config()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name, as for one rank; see `Stream.tensors`."""
        size = self.config["vocab_size"]
        stream = Stream(
            self._source, self._description, self._family, self._known, self._dtype, size, self._for_reader
        )
        return stream.tensors()

    def metadata(self, layout: Layout) -> dict[str, dict[str, Any]]:
        """Return {file: what it says} of the checkpoint in this layout.

        Raises:
            ExportError: the model cannot be divided so, or stages differ in their formats.
        """
        layout.check(self.config)
        quantization, per_layer = self._quantization(layout)
        config = layout.apply_to({**self.config, "quantization": quantization})
        return {"config.json": config} | ({} if per_layer is None else {"quant_cfg.json": per_layer})

    def differences(self) -> Iterator[str]:
        """Yield a sentence for each thing that is written for the reader and that the peer writes otherwise."""
        if not self._for_reader:
            return
        peer = self._peer_config()
        for key, value in self.config.items():
            if key != "quantization" and peer.get(key, _ABSENT) != value:
                yield f"config.json: {key} is {value!r} instead of {peer.get(key, _ABSENT)}"
        if "exclude_modules" in self.config["quantization"]:
            yield "config.json: exclude_modules has the reader's own patterns and every plain layer's name"
        plain = [name for name, known in self._known.items() if known.plain_for_reader]
        if plain:
            yield f"the weights of {len(plain)} layers are plain ({listed(plain, 2)}): the reader quantizes them itself"
        bare = [layer.name for layer in self._layers if self._lacks_factor(layer)]
        if bare:
            yield f"{len(bare)} layers have a prequant_scaling_factor of ones, without which the reader fails"

    def warnings(self) -> Iterator[str]:
        """Yield what nobody has tried with a reader."""
        said: dict[tuple[str, Verdict], list[str]] = {}
        for name, (known, layer_format) in self._formats.items():
            if known is not None and layer_format is not None:
                verdict = known.verdict(layer_format.weight)
                said.setdefault((known.quant_algo, verdict), []).append(name)
        for (algo, verdict), names in said.items():
            if verdict.status != "loads":
                yield f"{algo} in {listed(names, 2)}: {verdict.evidence}"
        if HEAD in self._known:
            yield "the head is quantized, which readers before 2025 do not take"

    def _all_layers(self) -> Iterator[JoinedLayer]:
        for number in range(len(self._description.blocks)):
            yield from block_layers(self._description, number, self._source, self._family.names)
        if not self._family.has_shared_head(self._source.config):
            yield head_layer(self._description, self._source)

    def _format(self, layer: JoinedLayer) -> tuple[Format | None, LayerFormat | None]:
        found = {name: self._source.layers.get(name) for name in layer.layers}
        kinds = list(dict.fromkeys(found.values()))
        if len(kinds) > 1:
            shown = "; ".join(f"{name}: {_shown(each)}" for name, each in list(found.items())[:3])
            raise ExportError(
                f"{layer.name} of a TensorRT-LLM checkpoint is one layer in one format, made of {shown}. Give these "
                "layers one format, or leave all of them out"
            )
        return format_for(kinds[0]), kinds[0]

    def _check_head(self) -> None:
        rows = self._source.config.get("vocab_size", 0)
        if HEAD in self._known and self._vocab_size() != rows:
            raise ExportError(
                f"the head is quantized and has {rows} rows, which INT4 checkpoints append to up to a multiple of "
                f"{_INT4_VOCABULARY}; leave it out ({{'quantizer_name': '*lm_head*', 'enable': False}})"
            )

    def _check_readable(self) -> None:
        refused = [
            f"{name} ({known.quant_algo}: {known.verdict(layer.weight).evidence})"
            for name, (known, layer) in self._formats.items()
            if known is not None and layer is not None and known.verdict(layer.weight).status == "refused"
        ]
        if refused:
            raise ExportError(
                f"the engine builder does not load {len(refused)} layers: {listed(refused, 2)}. Leave target out to "
                "write them as the peer does, or use export_hf_checkpoint(…, target='trtllm')"
            )

    def _vocab_size(self) -> int:
        rows = int(self._source.config.get("vocab_size", 0))
        has_int4 = any(known.weight.element == "int4" for known in self._known.values())
        return rows + (-rows % _INT4_VOCABULARY if has_int4 else 0)

    def _config(self) -> dict[str, Any]:
        config = self._peer_config()
        if self._for_reader or not self._family.has_peer:
            config |= reader_config(self._source.config, self._family)
        quantization, _ = self._quantization(Layout(1, 1), config)
        return {**config, "quantization": quantization}

    def _peer_config(self) -> dict[str, Any]:
        roles = self._description.blocks[0].roles
        has_bias = f"{roles.get('attention.out')}.bias" in self._source
        head = self._description.roles.get("lm_head")
        facts = ModelFacts(
            self._description.hyperparameters,
            self._dtype,
            self._vocab_size(),
            has_bias,
            f"{head}.bias" in self._source,
        )
        return peer_config(self._source.config, self._family, facts)

    def _quantization(
        self, layout: Layout, config: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        stages: list[dict[str, Mapping[str, Any] | None]] = [{} for _ in range(layout.pp_size)]
        for name, said in self._said().items():
            stage, local = to_local(name, config or self.config, layout)
            stages[stage][local] = said
        shares_head = self._family.has_shared_head(self._source.config)
        return quantization_metadata(stage_metadata(stages), self._cache, shares_head, self._for_reader)

    def _said(self) -> dict[str, Mapping[str, Any] | None]:
        """Return what is said of each linear layer, routers included; None of plain ones."""
        said: dict[str, Mapping[str, Any] | None] = {
            name: None if known is None or layer is None else known.metadata(layer.weight)
            for name, (known, layer) in self._formats.items()
        }
        for number in range(len(self._description.blocks)):
            modules = plain_modules(self._description, number, self._family.names)
            said |= {name: None for name, _ in modules if name.endswith((".router", ".shared_expert_gate"))}
        return said

    def _lacks_factor(self, layer: JoinedLayer) -> bool:
        known, state = self._known.get(layer.name), self._source.inputs(layer.layers[0])
        return known is not None and known.needs_factor and (state is None or state.pre_quant_scale is None)


_ABSENT = "nothing"


def _shown(layer: LayerFormat | None) -> str:
    return "plain" if layer is None else f"{layer.weight}"
