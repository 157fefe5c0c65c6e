"""`quantize`, `calibrate` and `unquantize`: the main verbs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from octavo.core.calibration.algorithms import algorithms_of
from octavo.core.calibration.attach import attach, check_reached
from octavo.core.calibration.calibration_report import add_to_report, calibration_report, noted
from octavo.core.calibration.cost import measured
from octavo.core.calibration.finalized import check_not_finalized
from octavo.core.calibration.fold_mode import check_not_folded
from octavo.core.calibration.forward_loop import ForwardLoop
from octavo.core.calibration.given import Given, given_for
from octavo.core.calibration.layer_records import describe_quantizers
from octavo.core.calibration.max_scales import calibrate_weights, uncalibrated
from octavo.core.calibration.run_log import RunLog
from octavo.core.calibration.support import check_gathers
from octavo.core.console import say
from octavo.core.errors import ModeError, listed
from octavo.core.model.sharded import spans_ranks
from octavo.core.modes.record import history, last_record, set_history
from octavo.core.modes.registry import mode_named
from octavo.core.modes.transaction import applying
from octavo.core.modules import check_not_packed
from octavo.core.plan import check_values, plan
from octavo.core.plugins import plugins

if TYPE_CHECKING:
    from octavo.core.calibration.algorithm import Algorithm
    from octavo.core.calibration.statistics.statistics import Statistics

_DATA_NOT_RUN = (
    "warning: the algorithm is None, so the calibration data was not run and calibrated nothing; set "
    "'algorithm': 'max' for static scales from it"
)


def quantize(
    model: nn.Module,
    config: str | Mapping[str, Any],
    forward_loop: ForwardLoop | None = None,
    quiet: bool = False,
    target: str | None = None,
    tp: int = 1,
    statistics: Statistics | str | Path | None = None,
    stats_budget: int | str | None = None,
    skip_bad_batches: bool = False,
) -> nn.Module:
    """Quantize a model in simulation, in place: plan, attach quantizers, calibrate.

    Either all of it succeeds or the model is as it was. What was quantized and what was not is printed, and is
    available as data from `octavo.plan`.

    Args:
        model: The model, with its weights in memory.
        config: A preset's name or a config (`octavo.FP8_DEFAULT_CFG`, …).
        forward_loop: Calibration data: a callable that takes the model and runs it, a dataloader, or a list of
            tensors or dicts. Needed where activations have static scales.
        quiet: Print nothing.
        target: Engine that will serve the checkpoint; what it cannot load is refused before any work.
        tp: Tensor-parallel size it will be served with.
        statistics: What `collect_statistics` returned for this model, or the folder they were saved to, in place of
            `forward_loop`: no data is run then.
        stats_budget: Bytes of statistics in memory (`2GB`, say); over it, the data is run several times, and weights
            are solved part by part.
        skip_bad_batches: Leave out, for each input, batches with NaN or infinite values, instead of refusing.

    Returns:
        `model`.

    Raises:
        ConfigError: the config or an option is wrong.
        CheckpointError: the statistics cannot be read.
        UnsupportedError: the config asks for something that is not available.
        PlanError: the config cannot work on this model; every reason is listed.
        CalibrationError: calibration yields nothing usable, or the statistics are of another model or lack what the
            config needs.
        ModeError: the model is quantized already.
    """
    made = plan(model, config, target, tp, stats_budget)
    algorithms = algorithms_of(made.config["algorithm"])
    made.check()
    check_values(model)
    check_gathers(model, algorithms)
    given = given_for(model, forward_loop, statistics, stats_budget, skip_bad_batches)
    with applying(model, "quantize", _json_ready(made.config)) as state:
        attach(model, made.layers)
        check_reached(model, quiet)
        calibrate_weights(model)
        if forward_loop is not None and not algorithms:
            say(_DATA_NOT_RUN, quiet)
        groups = [list(group) for group in made.groups]
        report = _run(model, algorithms, forward_loop, quiet, groups, given)
        state.update(layers=describe_quantizers(model), same_input=groups, report=report, **given.describe())
    given.say(quiet)
    say(made.summary(), quiet)
    return model


def calibrate(
    model: nn.Module, algorithm: Any = "max", forward_loop: ForwardLoop | None = None, quiet: bool = False
) -> nn.Module:
    """Calibrate the quantizers of a quantized model that have no state yet, in place.

    Others keep theirs: to calibrate a model with other data, unquantize it and quantize it again.

    Args:
        model: A quantized model.
        algorithm: As in a config: a name, a dict with `method`, or a list of these.
        forward_loop: As in `quantize`.
        quiet: Print nothing and show no progress bar.

    Raises:
        ModeError: the model is not quantized, is finalized for a dialect, or holds packed weights.
        ConfigError, UnsupportedError, CalibrationError: as in `quantize`.
    """
    return calibrate_attached(model, algorithm, forward_loop, quiet, spans_ranks(model))


def calibrate_attached(
    model: nn.Module, algorithm: Any, forward_loop: ForwardLoop | None, quiet: bool, of_all_ranks: bool
) -> nn.Module:
    """Do what `calibrate` does; with `of_all_ranks` every rank calls it, and gets the scales of all ranks' data."""
    if not any(record.mode == "quantize" for record in history(model)):
        raise ModeError("the model is not quantized; call octavo.quantize first")
    check_not_packed(model, "calibrate it")
    check_not_finalized(model, "calibrating")
    algorithms = algorithms_of(algorithm)
    calibrate_weights(model)
    if forward_loop is not None and not algorithms:
        say(_DATA_NOT_RUN, quiet)
    elif (
        forward_loop is not None
        and not uncalibrated(model)
        and not any(a.needs().any_input for a in algorithms)
    ):
        say("every quantizer is calibrated already, so the data was not run", quiet)
    record = last_record(model, "quantize")
    groups = record.state["same_input"] if record is not None else []
    given = Given(of_all_ranks=of_all_ranks)
    report = _run(model, algorithms, forward_loop, quiet, groups, given)
    add_to_report(model, report)
    return model


def unquantize(model: nn.Module) -> nn.Module:
    """Take all quantizers off, in place: every layer gets back the very class it had.

    Raises:
        ModeError: the model is not quantized, an algorithm (`gptq`, `compensate`, …) gave weights other values, weights
            are folded or packed, or another mode was applied after.
    """
    check_not_folded(model, "unquantize it")
    check_not_packed(model, "unquantize it")
    if changed := calibration_report(model).get("changed_weights"):
        raise ModeError(
            f"calibration gave {len(changed)} weights other values ({listed(changed, 2)}), and the original ones are "
            "gone; to unquantize it, load the original model again"
        )
    records = history(model)
    if not records or records[-1].mode != "quantize":
        found = ", ".join(record.mode for record in records) or "none"
        raise ModeError(
            f"only a model whose last mode is 'quantize' can be unquantized; found modes: {found}"
        )
    mode_named("quantize").undo(model)
    set_history(model, records[:-1])
    return model


def _run(
    model: nn.Module,
    algorithms: Sequence[Algorithm],
    forward_loop: ForwardLoop | None,
    quiet: bool,
    groups: Sequence[Sequence[str]],
    given: Given,
) -> dict[str, Any]:
    """Return what the run notes for the model's report."""
    if not algorithms:
        return {}
    from octavo.core.calibration.run import run_algorithms

    log = RunLog()
    with measured() as cost:
        rows, originals = run_algorithms(model, algorithms, forward_loop, quiet, groups, given, log)
        # Adapters that say which ranks have parts of their own leave nothing to share.
        if given.of_all_ranks and not plugins().rank_groups(model):
            from octavo.core.ranks.statistics import share_results

            share_results(model, any(algorithm.moves_weights for algorithm in algorithms))
    return noted(rows, log, cost, originals.names(model))


def _json_ready(config: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]
