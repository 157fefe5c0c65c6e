"""The `learned_rounding` algorithm: which codes weights take, learned block by block from what the blocks return.

After AutoRound (Cheng et al., arXiv:2309.05516), as the last of a list: training starts from what the algorithms before
it left, and from their values before rounding where they know them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.block_calls import CalibratedBlock, run_block
from octavo.core.calibration.block_reconstruction import reconstruct
from octavo.core.calibration.collectors import collecting
from octavo.core.calibration.layerwise import Layerwise
from octavo.core.calibration.reconstruction_options import ReconstructionOptions
from octavo.core.calibration.reconstruction_task import ReconstructionTask
from octavo.core.calibration.solvers.grid import static
from octavo.core.calibration.solvers.learned_rounding import RoundedWeight, unrounded
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.weight_problem import WeightProblem

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration

_START_STAYS = "the codes it started from: none that training found did better on the batches that judge"


class LearnRounding(Algorithm):
    """How long and how boldly each block is trained, on what the quantized blocks before it return.

    Held batches judge the result, which is never worse there than the start. Stacked weights (experts) stay as they
    are, and so does what is outside the blocks.

    Attributes:
        iterations: Steps for each block.
        batch_size: Sequences in one step.
        reach: How far a value can move before it is rounded, in steps between codes.
        range_reach: How far a scale can move, in parts of itself; 0 keeps all scales.
        held_batches: Batches kept out of training, the last ones.
        checks: How often, evenly spaced, the held batches are looked at; the best look is the result.
        seed: Of the order of the batches.
        logits: Train the last block by the divergence of the model's logits from the original ones. Off, or where the
            model returns no logits: by what the block returns, as the others.
    """

    method: ClassVar[str] = "learned_rounding"
    moves_weights = True
    layerwise: Layerwise = Layerwise(enable=True)
    iterations: int = Field(default=50, ge=1, strict=True)
    batch_size: int = Field(default=4, ge=1, strict=True)
    reach: float = Field(default=0.5, gt=0, allow_inf_nan=False, strict=True)
    range_reach: float = Field(default=0.03, ge=0, allow_inf_nan=False, strict=True)
    held_batches: int = Field(default=2, ge=1, strict=True)
    checks: int = Field(default=2, ge=1, strict=True)
    seed: int = Field(default=0, strict=True)
    logits: StrictBool = True

    @model_validator(mode="after")
    def _layerwise(self) -> LearnRounding:
        if not self.layerwise.enable:
            raise PydanticCustomError(
                "layerwise", "it learns block by block, found layerwise.enable=False; leave 'layerwise' out"
            )
        return self

    def needs(self) -> Needs:
        """Return what it must know of the original model."""
        return Needs(original_inputs=True)

    def run(self, calibration: Calibration) -> None:
        """Train the weights of the block at hand; outside of blocks there is nothing to do.

        Raises:
            CalibrationError: the data has too few sequences, or the loss of the start is not finite.
        """
        block = calibration.block
        if block is None or block.original is None:
            return
        if not block.original.outputs:  # no algorithm before this one ran it
            with collecting(block.module, {}):
                run_block(block.module, block.original.inputs, block.arguments, block.original.outputs)
        problems = [problem for problem in calibration.problems() if problem.index is None]
        if problems:
            self._learn(problems, block, calibration)

    def _learn(self, problems: list[WeightProblem], block: CalibratedBlock, calibration: Calibration) -> None:
        through_head = self.logits and block.tail is not None
        task = ReconstructionTask(block, self.batch_size, block.tail if through_head else None)
        options = ReconstructionOptions(
            iterations=self.iterations,
            batch_size=task.batch_size,
            reach=self.reach,
            range_reach=self.range_reach,
            loss="kl" if through_head else "mse",
            held=self.held_batches * task.batch_size,
            checks=self.checks,
            seed=self.seed,
        )
        starts = {task.name_of(problem): _start(problem, calibration) for problem in problems}
        found = reconstruct(task.module, starts, task.calls(), task.targets(), options)
        report = found.report
        for problem in problems:
            errors: dict[str, float | None] = {}
            if report.iteration:
                weight = found.weights[task.name_of(problem)]
                exact = calibration.exact.get(problem.name, problem.weight())
                errors = calibration.report_errors(problem, exact, weight.weight)
                problem.set_state(weight.state)
                calibration.set_weight(problem, weight.weight)
                calibration.unrounded.pop(problem.name, None)
            calibration.report(
                problem,
                self.method,
                loss=options.loss,
                start=report.start,
                best=report.held,
                iteration=report.iteration,
                fallback=_START_STAYS if report.iteration == 0 else None,
                **errors,
            )


def _start(problem: WeightProblem, calibration: Calibration) -> RoundedWeight:
    exact = calibration.unrounded.get(problem.name, problem.weight())
    start = unrounded(problem.rounded(), exact, problem.grid())
    return RoundedWeight(start, problem.state(), static(problem.spec))
