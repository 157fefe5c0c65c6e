"""The `smooth` algorithm, Octavo's own: smoothing that is folded at once, so that checkpoints stay plain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import StrictBool

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.fold_site import fold_site, reason_against
from octavo.core.calibration.folding_sites import FoldingSite, folding_sites
from octavo.core.calibration.smoothquant import Alpha
from octavo.core.calibration.solvers.smoothing import (
    Smoothing,
    balanced_scale,
    channel_magnitudes,
    search_smoothing,
)
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.errors import UnsupportedError
from octavo.core.formats import PerBlock, QuantSpec

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration

_HELD_TOKENS = 2048


class Smooth(Algorithm):
    """Factors on the channels of inputs, folded into the norm, v_proj or up_proj that makes them.

    Weights change, also of layers that are not quantized; the model without quantizers computes what it did. It is for
    formats that round inputs, and comes first in a list of algorithms.

    Attributes:
        alpha: Share of the difficulty that moves into the weights, at every site. `search`: for each site, none or what
            costs least on held tokens, among what makes no layer's output worse than without.
        round_weights: Whether a search sees rounded weights. False is better where GPTQ rounds them afterwards; then
            only the error of rounded inputs is never worse.
    """

    method: ClassVar[str] = "smooth"
    alpha: Alpha | Literal["search"] = "search"
    round_weights: StrictBool = True

    def needs(self) -> Needs:
        """Return magnitudes of channels, and tokens to judge candidates by."""
        return Needs(channels=True, held_tokens=_HELD_TOKENS)

    def run(self, calibration: Calibration) -> None:
        """Smooth and fold at every site whose readers have rounded inputs.

        Raises:
            UnsupportedError: no input of the model is rounded, or it has no site to fold at.
        """
        problems = {
            p.layer_name: p for p in calibration.problems() if p.index is None and _input_spec(p) is not None
        }
        sites, notes = folding_sites(calibration.model)
        found = [site for site in sites if any(reader in problems for reader in site.readers)]
        if not found and calibration.is_whole:
            raise UnsupportedError(
                "smooth balances inputs that are rounded against weights, and found none of them that it can fold: "
                + ("; ".join(notes) or "no input of a layer has a format; use 'awq_lite' for weights alone")
            )
        for site in found:
            self._smooth_site(
                calibration, site, [problems[name] for name in site.readers if name in problems]
            )

    def _smooth_site(
        self, calibration: Calibration, site: FoldingSite, readers: Sequence[WeightProblem]
    ) -> None:
        statistics = readers[0].statistics
        reason = reason_against(calibration, site, readers)
        if statistics is None or statistics.num_tokens == 0:
            reason = "no calibration data reached it"
        if reason or statistics is None:
            for problem in readers:
                calibration.report(problem, self.method, fallback=f"not smoothed: {reason}")
            return
        found = self._choose(site, readers)
        if found.alpha is not None:
            fold_site(calibration, site, found.pre_quant_scale)
        details: dict[str, object] = {"alpha": found.alpha}
        if found.alpha is not None:
            details["folded_into"] = site.maker
        if self.alpha == "search":
            details.update(output_error=found.error, output_error_without=found.plain_error)
        for problem in readers:
            calibration.report(problem, self.method, **details)

    def _choose(self, site: FoldingSite, readers: Sequence[WeightProblem]) -> Smoothing:
        statistics, input_spec = readers[0].statistics, _input_spec(readers[0])
        assert statistics is not None  # noqa: S101 (checked by the caller)
        assert input_spec is not None  # noqa: S101
        weights = [problem.weight() for problem in readers]
        rms = statistics.mean_square().sqrt() if isinstance(input_spec.granularity, PerBlock) else None
        if isinstance(self.alpha, float):
            act, columns = channel_magnitudes(weights, statistics.amax, rms, site.tied)
            return Smoothing(self.alpha, balanced_scale(act, columns, self.alpha), torch.nan, torch.nan)
        return search_smoothing(
            weights,
            statistics.amax,
            statistics.held.tokens(),
            readers[0].spec if self.round_weights else None,
            input_spec,
            rms,
            tie=site.tied,
        )


def _input_spec(problem: WeightProblem) -> QuantSpec | None:
    return None if problem.inputs is None else problem.inputs.spec
