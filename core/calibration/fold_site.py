"""Folding one factor at one site: into the weights of the maker and, inverted, of all its readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from octavo.core.calibration.folding_sites import VALUES, FoldingSite
from octavo.core.calibration.norm_kind import norm_kind
from octavo.core.calibration.originals import Originals
from octavo.core.calibration.smoothing_state import recollect, set_input_amax
from octavo.core.calibration.solvers.folding import norm_scaled, rows_scaled
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.formats import PerTensor
from octavo.core.modules import QuantAttention, QuantModule, quantized_layers

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration

_BEFORE_VALUES = ("q_bmm_quantizer", "k_bmm_quantizer")


def reason_against(calibration: Calibration, site: FoldingSite, readers: Sequence[WeightProblem]) -> str:
    """Return why a site cannot be folded, or an empty string."""
    model = calibration.model
    modules = [model.get_submodule(name) for name in (site.maker, *site.readers)]
    if not all(calibration.has(name) for name in (site.maker, *site.readers)):
        return f"{site.maker} is calibrated apart from what reads it"
    parameters = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    if any(parameter.is_meta or counts[id(parameter)] > 1 for parameter in parameters):
        return "a weight is shared with another module, or offloaded"
    if len({(problem.spec, problem.inputs and problem.inputs.spec) for problem in readers}) > 1:
        return "its readers have several formats"
    if any(problem.quantizer.pre_quant_scale is not None for problem in readers):
        return "its input has a pre_quant_scale already"
    if any(_rounds_output(model, site)):
        return f"what {site.maker} makes is rounded on its way"
    if _has_one_scale(modules[0]):
        return f"the weight of {site.maker} has one scale for all rows, which would have to differ"
    return ""


@torch.no_grad()
def fold_site(calibration: Calibration, site: FoldingSite, factor: Tensor) -> None:
    """Multiply what the readers read by `factor` [in], and divide their columns by it; maxima and statistics follow.

    Quantizers of the changed weights get the largest magnitudes.
    """
    model, originals = calibration.model, calibration.originals
    factor = factor.float()
    maker = model.get_submodule(site.maker)
    seen = {name: found for name in site.readers if (found := calibration.statistics_of(name)) is not None}
    for statistics in {
        id(found): found for found in seen.values()
    }.values():  # layers of a group share theirs
        statistics.scale_channels(factor)
    for name in site.readers:
        reader = model.get_submodule(name)
        weight = reader.get_parameter("weight")
        _set(weight, weight.float() / factor, originals)
        _recollect(reader)
        if isinstance(reader, QuantModule) and name in seen:
            set_input_amax(reader.quantizers()["input_quantizer"], seen[name].amax, weight.dtype)
    _scale_maker(maker, site, site.made(factor), originals)


def _scale_maker(maker: nn.Module, site: FoldingSite, factor: Tensor, originals: Originals) -> None:
    weight, bias = maker.get_parameter("weight"), getattr(maker, "bias", None)
    if site.is_norm:
        _set(weight, norm_scaled(weight, factor, norm_kind(maker) == "one plus weight"), originals)
    else:
        _set(weight, rows_scaled(weight, factor), originals)
    if bias is not None:
        _set(bias, norm_scaled(bias, factor), originals)
    _recollect(maker)


def _set(parameter: nn.Parameter, values: Tensor | None, originals: Originals) -> None:
    assert values is not None  # noqa: S101 (`rows_scaled` knows what is linear)
    originals.keep(parameter)
    parameter.copy_(values)


def _recollect(layer: nn.Module) -> None:
    if isinstance(layer, QuantModule):
        for name, weight in layer.quantized_weights().items():
            recollect(layer.quantizers()[name], weight.detach())


def _rounds_output(model: nn.Module, site: FoldingSite) -> Iterator[bool]:
    """Yield whether each quantizer between the maker and its readers is on."""
    maker = model.get_submodule(site.maker)
    if isinstance(maker, QuantModule) and "output_quantizer" in maker.quantizers():
        yield any(stage.is_active for stage in maker.quantizers()["output_quantizer"].stages())
    if site.role != VALUES:
        return
    for name, layer in quantized_layers(model):
        if isinstance(layer, QuantAttention) and site.maker.startswith(f"{name}."):
            for quantizer_name, quantizer in layer.quantizers().items():
                if quantizer_name not in _BEFORE_VALUES:
                    yield any(stage.is_active for stage in quantizer.stages())


def _has_one_scale(maker: nn.Module) -> bool:
    if not isinstance(maker, QuantModule) or "weight_quantizer" not in maker.quantizers():
        return False
    stages = maker.quantizers()["weight_quantizer"].stages()
    specs = [stage.spec for stage in stages if stage.enabled and stage.spec is not None]
    return any(isinstance(spec.granularity, PerTensor) for spec in specs)
