"""`collect_statistics`: one run of data over a plain model, for any number of quantizations."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from octavo.core.calibration.attach import detach, swap_with
from octavo.core.calibration.collectors import collecting
from octavo.core.calibration.experts import counting_tokens, tokens_per_expert
from octavo.core.calibration.forward_loop import ForwardLoop, run_forward_loop
from octavo.core.calibration.statistics.bad_batches import BadBatches
from octavo.core.calibration.statistics.fingerprint import ModelFingerprint, hashing_calls
from octavo.core.calibration.statistics.input_statistics import InputStatistics
from octavo.core.calibration.statistics.points import Points, groups_of
from octavo.core.calibration.statistics.sizes import InputSize, parse_bytes, passes_within, summarize
from octavo.core.calibration.statistics.statistics import Collection, Statistics
from octavo.core.calibration.statistics.storage import InputsWriter
from octavo.core.console import say
from octavo.core.errors import CalibrationError, ConfigError, ModeError, UnsupportedError
from octavo.core.plan import check_device
from octavo.core.plan.model_state import check_plain
from octavo.core.plan.sites import Site, find_sites
from octavo.core.plugins import plugins


def collect_statistics(
    model: nn.Module,
    forward_loop: ForwardLoop,
    *,
    gram: bool = True,
    held_tokens: int = 256,
    outputs: bool = False,
    all_experts: bool = False,
    stats_budget: int | str | None = None,
    skip_bad_batches: bool = False,
    quiet: bool = False,
) -> Statistics:
    """Run data through a plain model once and keep what calibration may ask for, for `quantize(statistics=…)`.

    The input of every layer that can be quantized is looked at, queries, keys and values too; layers that read the
    same tensor share its statistics. The model is as it was afterwards, also after an interrupt.

    Args:
        model: A model that is not quantized.
        forward_loop: Calibration data, as for `quantize`.
        gram: Keep XᵀX of inputs of weights, fp32 [in, in] each, which algorithms with second moments need.
        held_tokens: How many tokens of each input of a weight to keep, at most.
        outputs: Look at layers' outputs, too: for configs that quantize them.
        all_experts: Show every token to every expert; outputs stay those of the chosen ones.
        stats_budget: Bytes of statistics in memory (`2GB`, say); over it, the data is run several times, and what
            is gathered goes to temporary files.
        skip_bad_batches: Leave out, for each input, batches with NaN or infinite values, instead of refusing.
        quiet: Print nothing.

    Raises:
        ModeError: the model is quantized already.
        PlanError: the model's weights are not here.
        ConfigError: an option is wrong.
        CalibrationError: the data has NaN or infinite values, runs the model not once, or differs from pass to pass;
            or one input's statistics exceed the budget.
    """
    if type(held_tokens) is not int or held_tokens < 0:
        raise ConfigError(f"held_tokens={held_tokens!r}: expected a whole number, 0 or more")
    budget = parse_bytes(stats_budget)
    check_plain(model)
    plugins().check_model(model)
    check_device(model)
    collection = Collection(gram, held_tokens, outputs, all_experts, skip_bad_batches)
    fingerprint = ModelFingerprint.of(model)
    sites, _ = find_sites(model, plugins().mixins(model))
    bad = BadBatches() if skip_bad_batches else None
    with _watched(model, sites, quiet) as watched:
        points = Points(watched, groups_of(model, watched), collection)
        say(summarize(points.sizes, budget), quiet)
        passes = passes_within(points.sizes, budget)
        run = _Passes(model, forward_loop, points, bad, quiet)
        inputs = run.all_at_once(passes[0]) if len(passes) == 1 else run.one_by_one(passes)
        experts = {name: tokens.clone() for name, tokens in tokens_per_expert(model).items()}
    skipped = {} if bad is None else bad.skipped
    if bad is not None and bad.note():
        say(f"warning: {bad.note()}", quiet)
    return Statistics(fingerprint, (run.data,), collection, points.names, inputs, experts, skipped)


class _Passes:
    """Runs the data once for each part of the points."""

    def __init__(
        self, model: nn.Module, forward_loop: ForwardLoop, points: Points, bad: BadBatches | None, quiet: bool
    ) -> None:
        self.data = ""
        self._model = model
        self._forward_loop = forward_loop
        self._points = points
        self._bad = bad
        self._quiet = quiet

    def all_at_once(self, sizes: Sequence[InputSize]) -> Mapping[str, InputStatistics]:
        """Return the statistics of some points, by one run."""
        attached, collectors = self._points.collectors(self._model, [size.name for size in sizes])
        if self._bad is not None:
            attached = self._bad.guards(attached, {q: c.name for q, c in collectors.items()})
        all_experts = self._points.collection.all_experts
        with (
            hashing_calls(self._model) as seen,
            collecting(self._model, attached),
            counting_tokens(self._model, all_experts),
        ):
            run_forward_loop(self._model, self._forward_loop, self._quiet)
        if self.data and self.data != seen.digest():
            raise CalibrationError(
                f"the data differs from pass to pass (fingerprints {self.data} and {seen.digest()}); turn shuffling "
                "off, or give a stats_budget (--stats-budget) that one pass is enough for"
            )
        self.data = seen.digest()
        return {c.name: c.statistics for c in collectors.values() if c.statistics is not None}

    def one_by_one(self, passes: Sequence[Sequence[InputSize]]) -> Mapping[str, InputStatistics]:
        """Return the statistics of all points, in temporary files that go with them."""
        folder = Path(tempfile.mkdtemp(prefix="octavo-statistics-"))
        try:
            writer = InputsWriter(folder, shard_bytes=1)  # nothing waits in memory
            for sizes in passes:
                for name, statistics in self.all_at_once(sizes).items():
                    writer.add(name, statistics)
            return writer.finish(is_temporary=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def _watched(model: nn.Module, sites: Sequence[Site], quiet: bool) -> Iterator[list[Site]]:
    """Give every layer quantizers that are off, for the time of a context; yield the layers that could have them."""
    watched = []
    try:
        for site in sites:
            try:
                off = dict.fromkeys(site.quantized.constant_names(), ())
                swap_with(site.name, site.layer, site.quantized, off)
                watched.append(site)
            except (ModeError, UnsupportedError) as error:  # a config may exclude it
                say(f"warning: no statistics of {site.name}: {error}", quiet)
        plugins().prepare_model(model)
        yield watched
    finally:
        detach(model)
