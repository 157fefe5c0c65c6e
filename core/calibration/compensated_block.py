"""One block of `compensate`: its layers solved in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from octavo.core.calibration.block_calls import CalibratedBlock
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.collectors import Ignore, attached
from octavo.core.calibration.compensated_weights import round_group
from octavo.core.calibration.group_reader import GroupReader, quantizers_of, read_calls
from octavo.core.calibration.group_statistics import GroupStatistics
from octavo.core.calibration.original_inputs import OriginalInputs, run_original
from octavo.core.calibration.residual_sums import residual_sums
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.errors import CalibrationError, listed
from octavo.core.formats import fake_quantize
from octavo.core.quantizers import TensorQuantizer

if TYPE_CHECKING:
    from octavo.core.calibration.compensate import Compensate

Sums = dict[tuple[type, str], str | None]
# At most so many tokens are held to judge by, and no more than one in so many.
_HELD, _ONE_IN = 512, 16


def compensate_block(
    calibration: Calibration, block: CalibratedBlock, options: Compensate, sums: Sums
) -> None:
    """Round the weights of a block; `sums` remembers what was found in blocks of the same class.

    Raises:
        CalibrationError: a weight is offloaded, or data gives values that are not finite; the layer is named.
    """
    groups = calibration.grouped()
    _check_in_memory(problem for group in groups for problem in group)
    calibration.share_second_levels()
    if options.compensate_residual:
        _find_sums(block, groups, sums)
    readers = [GroupReader(group, _sum_reader(block, group, options, sums)) for group in groups]
    known = run_original(block, readers)
    unsolved = [problem for group in known for problem in group.reader.problems]
    tokens = sum(hidden.numel() // hidden.shape[-1] for hidden in block.inputs)
    for wave in _waves(known):
        silent = _silent(block, groups, unsolved)
        statistics = _gather(block, wave, silent, options, max(_ONE_IN, tokens // _HELD))
        for group, seen in zip(wave, statistics, strict=True):
            round_group(calibration, group.reader.problems, seen, options)
            unsolved = [problem for problem in unsolved if problem not in group.reader.problems]
    reached = [group.reader for group in known]
    for problem in (problem for reader in readers if reader not in reached for problem in reader.problems):
        calibration.report(problem, options.method, chosen="max", reason="no token reached it")


def _check_in_memory(problems: Iterable[WeightProblem]) -> None:
    offloaded = [p.name for p in problems if p.layer.quantized_weights()[p.slot.quantizer].is_meta]
    if offloaded:
        raise CalibrationError(
            f"'compensate' needs the weights of a block in memory, and {len(offloaded)} are offloaded: "
            f"{listed(offloaded)}; load the model without offloading, or use the algorithm 'max'"
        )


def _find_sums(block: CalibratedBlock, groups: list[list[WeightProblem]], sums: Sums) -> None:
    """Find which layers that read a tensor alone write to a sum, if blocks of this class are not known yet."""
    width = block.inputs[0].shape[-1]
    names = [
        _inside(block, group[0])
        for group in groups
        if len(group) == 1 and group[0].index is None and _num_rows(group[0]) == width
    ]
    new = [name for name in names if (type(block.module), name) not in sums]
    if new:
        with attached(dict.fromkeys(quantizers_of(block), Ignore())):
            found = residual_sums(block, new)
        sums.update({(type(block.module), name): found.get(name) for name in new})


def _sum_reader(
    block: CalibratedBlock, group: list[WeightProblem], options: Compensate, sums: Sums
) -> str | None:
    if len(group) > 1 or not options.compensate_residual:
        return None
    return sums.get((type(block.module), _inside(block, group[0])))


def _num_rows(problem: WeightProblem) -> int:
    return problem.layer.quantized_weights()[problem.slot.quantizer].shape[0]


def _inside(block: CalibratedBlock, problem: WeightProblem) -> str:
    return problem.layer_name.removeprefix(f"{block.name}.")


def _waves(known: list[OriginalInputs]) -> Iterator[list[OriginalInputs]]:
    """Yield groups to be gathered in one run: experts that follow each other together, others one by one."""
    experts: list[OriginalInputs] = []
    for group in known:
        if group.is_kept:
            if experts:
                yield experts
                experts = []
            yield [group]
        else:
            experts.append(group)
    if experts:
        yield experts


def _silent(
    block: CalibratedBlock, groups: list[list[WeightProblem]], unsolved: list[WeightProblem]
) -> list[TensorQuantizer]:
    """Return the quantizers that round nothing now: all of layers to come, and those of weights that are rounded."""
    waiting = {id(problem.layer) for problem in unsolved}
    silent = [problem.quantizer for group in groups for problem in group]
    layers = {id(p.layer): p.layer for group in groups for p in group if id(p.layer) in waiting}
    for layer in layers.values():
        silent += [stage for quantizer in layer.quantizers().values() for stage in quantizer.stages()]
    return silent


def _gather(
    block: CalibratedBlock,
    wave: list[OriginalInputs],
    silent: list[TensorQuantizer],
    options: Compensate,
    stride: int,
) -> list[GroupStatistics]:
    """Run the block as it is quantized so far, and return what is known of each group's input."""
    statistics = [GroupStatistics(stride) for _ in wave]

    def see(index: int, _: Tensor | None) -> None:
        for group, found in zip(wave, statistics, strict=True):
            _add_call(group, found, index, options.compensate_inputs)

    readers = [group.reader for group in wave]
    read_calls(block, block.inputs, readers, see, silent=silent, stops=wave[0].is_kept)
    for reader, found in zip(readers, statistics, strict=True):
        if found.gram is not None and not found.gram.isfinite().all():
            raise CalibrationError(
                f"the input of {reader.problems[0].layer_name} has NaN or infinite values; look at this layer's input "
                "and at the calibration data"
            )
    return statistics


def _add_call(group: OriginalInputs, found: GroupStatistics, index: int, compensates: bool) -> None:
    for x in group.reader.inputs:
        rounded = _rounded(group.reader.problems[0], x)
        original, rest = None, None
        if group.is_kept and compensates:
            original = group.inputs[index]
            original = original if original.numel() == x.numel() else None
        if original is not None and group.rests is not None and group.reader.rest is not None:
            rest = group.rests[index] - group.reader.rest
        found.add(rounded, original, rest)


def _rounded(problem: WeightProblem, x: Tensor) -> Tensor:
    """Return an input as the weight will be multiplied with it."""
    for stage in problem.layer.quantizers()[problem.slot.inputs].stages():
        if stage.enabled and stage.spec is not None:
            x = fake_quantize(x, stage.state_tensors(), stage.spec)
    return x
