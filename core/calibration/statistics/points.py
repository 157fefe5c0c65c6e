"""Points: the tensors of a model that quantizers could see, each with a collector of its statistics."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from octavo.core.calibration.statistics.collector import StatisticsCollector
from octavo.core.calibration.statistics.needs import NOTHING, Needs
from octavo.core.calibration.statistics.sizes import InputSize
from octavo.core.calibration.statistics.statistics import Collection
from octavo.core.graph.groups import probe_or_note
from octavo.core.modules import QuantModule, WeightSlot
from octavo.core.plan.sites import Site
from octavo.core.plugins import plugins
from octavo.core.quantizers import Collector, TensorQuantizer

_OUTPUT = "output_quantizer"
_SHARED = WeightSlot()


class Points:
    """What a collection looks at.

    Args:
        sites: The layers.
        groups: Names of layers that read the same tensor.
        collection: What to gather.

    Attributes:
        names: {quantizer: the quantizer that shows its tensor}.
        collection: What to gather.
        sizes: Of each distinct tensor, in the model's order.
    """

    def __init__(
        self, sites: Sequence[Site], groups: Sequence[Sequence[str]], collection: Collection
    ) -> None:
        self.names: dict[str, str] = {}
        self.sizes: list[InputSize] = []
        self._needs: dict[str, tuple[Needs, bool]] = {}
        self.collection = collection
        first = {name: group[0] for group in groups for name in group}
        for site in sites:
            for quantizer in site.quantized.constant_names():
                if quantizer in site.weight_quantizers() or (quantizer == _OUTPUT and not collection.outputs):
                    continue
                shared = first.get(site.name) if quantizer == _SHARED.inputs else None
                name = site.quantizer_name(quantizer)
                shows = name if shared is None else f"{shared}.{quantizer}"
                self.names[name] = shows
                if name == shows:
                    self._add(site, quantizer, name)

    def collectors(
        self, model: nn.Module, names: Sequence[str]
    ) -> tuple[dict[TensorQuantizer, Collector], dict[TensorQuantizer, StatisticsCollector]]:
        """Return (what to attach, the collectors that statistics are in) for some of the distinct tensors."""
        attached: dict[TensorQuantizer, Collector] = {}
        collectors = {}
        for name in names:
            quantizer = model.get_submodule(name)
            needs, has_channels = self._needs[name]
            if isinstance(quantizer, TensorQuantizer):
                collectors[quantizer] = StatisticsCollector(name, needs)
                attached[quantizer] = (
                    collectors[quantizer] if has_channels else _WithoutChannels(collectors[quantizer])
                )
        return attached, collectors

    def _add(self, site: Site, quantizer: str, name: str) -> None:
        """Gather everything for inputs of matrices, and maxima for the rest."""
        shape = site.quantized.quantizer_shape(site.layer, quantizer)
        num_channels = shape[-1] if shape else 0
        slot = next((s for s in site.quantized.weight_slots() if s.inputs == quantizer), None)
        is_matrix = num_channels > 0 and slot is not None and _is_matrix(site.layer, slot)
        needs = self.collection.needs if is_matrix else NOTHING
        self._needs[name] = (needs, num_channels > 0)
        parameter = next(site.layer.parameters(), None)
        itemsize = 4 if parameter is None else parameter.element_size()
        self.sizes.append(InputSize.of(name, num_channels or 1, needs, itemsize))


class _WithoutChannels:
    """A collector before another one, for tensors whose last dim varies: all values are of one channel."""

    def __init__(self, collector: StatisticsCollector) -> None:
        self._collector = collector

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Hand all values on as one channel."""
        self._collector.collect(quantizer, x.reshape(-1, 1))


def groups_of(model: nn.Module, sites: Sequence[Site]) -> list[list[str]]:
    """Return names of layers that read the same tensor, by the family map, and where it has none by a tiny pass."""
    watched = {
        site.name: site.layer
        for site in sites
        if _SHARED in site.quantized.weight_slots()
        and _SHARED.inputs in site.quantized.quantizer_names
        and _is_matrix(site.layer, _SHARED)
    }
    description, inputs = plugins().describe_model(model), plugins().tiny_inputs(model)
    groups = [] if description is None else list(description.same_input)
    recorder, _ = (None, "") if inputs is None else probe_or_note(model, watched, inputs)
    declared = {name for group in groups for name in group}
    for group in [] if recorder is None else recorder.groups():
        groups.append(tuple(name for name in group if name not in declared))
    kept = [sorted(name for name in group if name in watched) for group in groups]
    return [group for group in kept if len(group) > 1]


def _is_matrix(layer: nn.Module | QuantModule, slot: WeightSlot) -> bool:
    return slot.is_stacked or getattr(layer, slot.parameter).dim() == 2
