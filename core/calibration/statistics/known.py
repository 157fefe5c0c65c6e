"""Saved statistics in place of a run of data: what they must hold, and how quantizers are shown them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from octavo.core.calibration.statistics.input_statistics import InputStatistics
from octavo.core.calibration.statistics.needs import Needs
from octavo.core.calibration.statistics.statistics import Statistics
from octavo.core.calibration.statistics.storage import StoredInputs
from octavo.core.errors import CalibrationError, listed
from octavo.core.formats import PerTensor
from octavo.core.modules import QuantExperts, quantized_layers, tensor_quantizers
from octavo.core.quantizers import TensorQuantizer

_STAGE = re.compile(r"\.\d+$")
_INSTEAD = "or calibrate with data (--calib-data)"


class KnownStatistics:
    """Statistics that stand for a run of data over a quantized model.

    Args:
        statistics: Of the model as it was before it was quantized.
        model: The model, its quantizers attached.
    """

    def __init__(self, statistics: Statistics, model: nn.Module) -> None:
        self._statistics = statistics
        self._model = model

    def check(self, needs: Needs, waiting: Sequence[tuple[str, TensorQuantizer]]) -> None:
        """Refuse when something is asked for that was not collected.

        Args:
            needs: What algorithms ask for.
            waiting: Quantizers that data is to calibrate, by name.

        Raises:
            CalibrationError: it names what is missing and the option that would collect it.
        """
        self._check_needs(needs)
        where = self._statistics.source
        histograms = [
            f"{name} ({q.calibrator.method})" for name, q in waiting if q.calibrator.method != "max"
        ]
        if histograms:
            raise CalibrationError(
                f"{where} hold maxima and no histograms, which the calibrators of {len(histograms)} quantizers need: "
                f"{listed(histograms)}; use calibrator 'max', {_INSTEAD}"
            )
        transformed = [name for name, q in waiting if q.has_static_bias or q.rotation is not None]
        if transformed:
            raise CalibrationError(
                f"{where} hold maxima of tensors as they are, and {len(transformed)} quantizers rotate theirs or "
                f"subtract a bias: {listed(transformed)}; leave 'bias' and 'rotate' out, {_INSTEAD}"
            )
        unknown = [name for name, _ in waiting if _point(name) not in self._statistics.points]
        if unknown:
            outputs = any(_point(name).endswith("output_quantizer") for name in unknown)
            remedy = "with outputs=True (--outputs)" if outputs else "of this model again"
            raise CalibrationError(
                f"{where} hold nothing of {len(unknown)} quantizers: {listed(unknown)}; collect them {remedy}, "
                f"{_INSTEAD}"
            )
        flat = [name for name, q in waiting if self._lacks_channels(name, q)]
        if flat:
            raise CalibrationError(
                f"{where} hold one maximum, not one for each channel, of {len(flat)} quantizers: {listed(flat)}; use "
                f"one scale per tensor (axis None), {_INSTEAD}"
            )

    def show(self) -> None:
        """Show the collectors on the model's quantizers what data would have shown them."""
        for name, quantizer in tensor_quantizers(self._model):
            amax = self._amax(_point(name))
            if amax is not None and quantizer.collector is not None:
                device = next((t.device for t in quantizer.buffers()), amax.device)
                quantizer.collector.collect(quantizer, amax.to(device)[None])
        for name, layer in quantized_layers(self._model):
            if isinstance(layer, QuantExperts) and name in self._statistics.tokens_per_expert:
                layer.tokens_per_expert = self._statistics.tokens_per_expert[name].clone()

    def inputs(self, names: Sequence[tuple[str, torch.device]], needs: Needs) -> dict[str, InputStatistics]:
        """Return the statistics of these inputs, on their devices, as far as data reached them."""
        points, inputs = self._statistics.points, self._statistics.inputs
        found = [(name, device) for name, device in names if points.get(name) in inputs]
        return {name: inputs[points[name]].narrowed(needs, device) for name, device in found}

    def _check_needs(self, needs: Needs) -> None:
        has, where = self._statistics.collection, self._statistics.source
        if needs.gram and not has.gram:
            raise CalibrationError(
                f"{where} hold no XᵀX, which the algorithm needs; collect them with gram=True (without --no-gram), "
                f"{_INSTEAD}"
            )
        if needs.held_tokens > has.held_tokens:
            raise CalibrationError(
                f"{where} hold {has.held_tokens} tokens of each input, and the algorithm needs {needs.held_tokens}; "
                f"collect them with held_tokens={needs.held_tokens} (--held-tokens), {_INSTEAD}"
            )
        if needs.all_experts != has.all_experts and any(
            isinstance(layer, QuantExperts) for _, layer in quantized_layers(self._model)
        ):
            raise CalibrationError(
                f"{where} were collected in another way than the algorithm asks for: fingerprint of their collection: "
                f"{has}; expected all_experts={needs.all_experts}. Collect them with "
                f"all_experts={needs.all_experts} (--all-experts), {_INSTEAD}"
            )

    def _amax(self, point: str) -> Tensor | None:
        inputs, key = self._statistics.inputs, self._statistics.points.get(point)
        if key is None or key not in inputs:
            return None
        return inputs.amax(key) if isinstance(inputs, StoredInputs) else inputs[key].amax

    def _lacks_channels(self, name: str, quantizer: TensorQuantizer) -> bool:
        spec, amax = quantizer.spec, self._amax(_point(name))
        if spec is None or "amax" not in spec.state or isinstance(spec.granularity, PerTensor):
            return False
        return amax is not None and quantizer.amax.shape != amax.shape


def _point(name: str) -> str:
    """Return the quantizer's name without the number of a stage: all stages of one see the same tensor."""
    return _STAGE.sub("", name)
