"""QuantizedTraining: what a training loop does with the quantizers of its model, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from octavo.core.calibration.attach import attach, check_reached
from octavo.core.calibration.forward_loop import ForwardLoop
from octavo.core.calibration.layer_records import describe_quantizers
from octavo.core.calibration.learned_scales import fix_scales, learned_quantizers, not_learning
from octavo.core.calibration.quantize import calibrate_attached
from octavo.core.console import say
from octavo.core.errors import CheckpointError, TrainingError, listed
from octavo.core.modes.transaction import applying
from octavo.core.plan import check_values, plan
from octavo.core.plan.targets import check_stored
from octavo.core.quantizers import TensorQuantizer
from octavo.core.ranks.world import num_ranks
from octavo.core.training.batch_norm import freeze_batch_norms
from octavo.core.training.metrics import WeightMetrics, weight_metrics
from octavo.core.training.observed import ActivationObserver
from octavo.core.training.participants import Participant, participants
from octavo.core.training.recipe import RecipeGuard
from octavo.core.training.scales import (
    ActivationScales,
    WeightScales,
    activation_quantizers,
    check_scales,
    learn_scales,
    recompute_weight_scales,
)
from octavo.core.training.schedule import Schedule
from octavo.core.training.wrapping import check_sees_parts, check_wrapped, check_wrapping


class QuantizedTraining:
    """Quantization-aware training of one model, in any training loop.

    Attach the quantizers first, by making this object; then make the optimizer, then load a checkpoint to resume
    from, if there is one; then `begin`. Everything that a resumed run needs is in the model's state dict and in the
    number of the step. Where several ranks train the model, each makes the same calls; `begin` puts together what their
    calibration data shows.

        training = octavo.QuantizedTraining(model, "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", weight_scales="lsq")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        training.begin(step=0, forward_loop=calibration_batches)
        for step, batch in enumerate(batches):
            training.before_step(step)
            model(**batch).loss.backward()
            training.before_optimizer(step)
            optimizer.step()
            optimizer.zero_grad()
            training.after_step(step + 1)
        training.end()
        octavo.export_hf_checkpoint(model, export_dir="exported")

    Until `begin`, and outside of the schedule, quantizers are off and the model computes what it did.

    Args:
        model: A plain model, or one that FSDP2, DDP or ZeRO-3 has wrapped already.
        config: A preset's name or a config, with any calibration algorithm.
        schedule: When which quantizers round.
        weight_scales: What becomes of calibrated scales of weights. `held`: they stay. `recomputed`: after each step
            they are those of the weights' largest magnitudes. `lsq`: they are learned (arXiv:1902.08153).
        activation_scales: The same for other tensors. `observed`: a running average of the largest magnitudes of each
            step (arXiv:1712.05877). `pact`: learned, from clipped values (arXiv:1805.06085).
        target: Engine that will serve the result; what it cannot load is refused before any work.
        tp: Tensor-parallel size it will be served with.
        exporter: Exporter whose checkpoints must have a place for every format (`unified_hf`).
        quiet: Print nothing.

    Raises:
        ConfigError, PlanError, UnsupportedError, ModeError: as `octavo.quantize`; or there are no scales to learn. The
            model is as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        config: str | Mapping[str, Any],
        schedule: Schedule | None = None,
        weight_scales: WeightScales = "held",
        activation_scales: ActivationScales = "held",
        target: str | None = None,
        tp: int = 1,
        exporter: str | None = None,
        quiet: bool = False,
    ) -> None:
        check_scales(weight_scales, activation_scales)
        made = plan(model, config, target, tp)
        made.check()
        if exporter is not None:
            check_stored(made.layers, exporter)
        check_values(model)
        recorded = json.loads(json.dumps(made.config))
        self.model, self.schedule, self._quiet = model, schedule or Schedule(), quiet
        self._algorithm = made.config["algorithm"]
        self._recomputes = weight_scales == "recomputed"
        self._batch_norms: Sequence[RemovableHandle] = ()
        with applying(model, "quantize", recorded) as state:
            attach(model, made.layers)
            check_reached(model, quiet)
            state.update(
                layers=describe_quantizers(model),
                same_input=[list(group) for group in made.groups],
                report={},
            )
            self._layers = participants(model)
            check_wrapping(model, {"weight_scales": weight_scales, "activation_scales": activation_scales})
            learn_scales(self._layers, weight_scales, activation_scales)
        observed = activation_quantizers(self._layers) if activation_scales == "observed" else []
        self._observer = ActivationObserver(observed)
        scales = {"weight_scales": weight_scales, "activation_scales": activation_scales}
        recipe = {"config": recorded, "schedule": asdict(self.schedule), **scales}
        self._guard: RecipeGuard | None = RecipeGuard(model, recipe)
        self._switch(weights=False, others=False)
        say(made.summary(), quiet)

    def begin(self, step: int, forward_loop: ForwardLoop | None = None) -> None:
        """Calibrate at step 0; on resuming, check what was loaded.

        Args:
            step: Steps that are finished: 0, or the checkpoint's.
            forward_loop: Calibration data, as in `octavo.quantize`. It is not run on resuming.

        Raises:
            CalibrationError: data is needed and there is none, or it yields nothing usable.
            CheckpointError: the loaded checkpoint was made without quantizers, or not all of it reached them.
            TrainingError: training has ended.
        """
        if self._guard is None:
            raise TrainingError(
                "training of this model has ended, and its scales are fixed; to train it again, make a new model, "
                "callback and trainer"
            )
        self._guard.check_loaded(step)
        check_wrapped(self.model)
        if step == 0:
            self._switch(weights=True, others=True)
            data = None if self._algorithm is None else forward_loop
            with not_learning(self.model):
                calibrate_attached(self.model, self._algorithm, data, self._quiet, num_ranks() > 1)
        else:
            self._check_resumed()
        self.before_step(step)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Check that an optimizer has the scales that are learned; one that has flattened all parameters passes.

        Raises:
            TrainingError: it was made before the quantizers were, or before FSDP2 divided the model.
        """
        check_sees_parts(self.model, optimizer)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [name for name, q in learned_quantizers(self.model) if id(q.amax_shift) not in known]
        if missing and any(id(parameter) in known for parameter in self.model.parameters()):
            raise TrainingError(
                f"the optimizer lacks {len(missing)} learned scales (first {missing[0] + '.amax_shift'!r}): it was "
                "made before the model was quantized. Let the trainer make it, or make it after"
            )

    def before_step(self, step: int) -> None:
        """Turn on what rounds at `step`, the number of finished steps, and freeze batch norms when it is time."""
        number = len(self._layers)
        for index, layer in enumerate(self._layers):
            weights = self.schedule.rounds_weights(step, index, number)
            _set(layer, weights, self.schedule.rounds_activations(step, index, number))
        self._observer.watch(not self.schedule.scales_are_frozen(step))
        if self.schedule.batch_norm_is_frozen(step) and not self._batch_norms:
            self._batch_norms = freeze_batch_norms(self.model)

    def before_optimizer(self, step: int) -> None:
        """Take the gradients of frozen scales away, so that no optimizer changes them."""
        if self.schedule.scales_are_frozen(step):
            for _, quantizer in learned_quantizers(self.model):
                assert quantizer.amax_shift is not None  # noqa: S101
                quantizer.amax_shift.grad = None

    def after_step(self, step: int) -> None:
        """Move scales that follow weights or data, now that `step` steps are finished, and go on to the next.

        Raises:
            TrainingError: a weight whose scales follow it is not here, and cannot be gathered.
        """
        if not self.schedule.scales_are_frozen(step):
            self._observer.update()
            if self._recomputes:
                recompute_weight_scales(self._layers)
        self.before_step(step)

    def metrics(self) -> dict[str, WeightMetrics]:
        """Return how far each weight's rounding and scales are off, by layer."""
        return weight_metrics(self._layers)

    @contextmanager
    def unquantized(self) -> Iterator[None]:
        """Compute what the model would without quantizers, for the time of a context."""
        before = {stage: stage.enabled for layer in self._layers for stage in _stages(layer)}
        self._switch(weights=False, others=False)
        try:
            yield
        finally:
            for stage, enabled in before.items():
                stage.enabled = enabled

    def end(self) -> None:
        """Turn everything on that the config turned on, fix learned scales, and leave a quantized model like any other.

        Optimizers that know the learned scales are of no use after.
        """
        if self._guard is None:
            return
        for handle in self._batch_norms:
            handle.remove()
        self._batch_norms = ()
        self._observer.watch(False)
        fix_scales(self.model)
        self._switch(weights=True, others=True)
        self._guard.remove()
        self._guard = None

    def _check_resumed(self) -> None:
        waiting = [
            f"{layer.name}.{short}"
            for layer in self._layers
            for short, chain in (layer.weights | layer.others).items()
            if any(stage.needs_calibration for stage in chain)
        ]
        if waiting:
            raise CheckpointError(
                f"the scales of {len(waiting)} quantizers were not loaded: {listed(waiting, 2)}. The checkpoint lacks "
                "them, or has them under other names than the model (transformers 5 renames layers of stacked experts "
                "when it saves, and its Trainer does not when it resumes: their weights are not loaded either)"
            )

    def _switch(self, weights: bool, others: bool) -> None:
        for layer in self._layers:
            _set(layer, weights, others)


def _set(layer: Participant, weights: bool, others: bool) -> None:
    for chains, enabled in ((layer.weights, weights), (layer.others, others)):
        for stage in (stage for chain in chains.values() for stage in chain):
            stage.enabled = enabled


def _stages(layer: Participant) -> Iterator[TensorQuantizer]:
    for chains in (layer.weights, layer.others):
        for chain in chains.values():
            yield from chain
