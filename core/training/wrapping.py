"""What DDP, FSDP2 and ZeRO-3 have to see, or cannot do, when scales are learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import nn

from octavo.core.calibration.learned_scales import learned_quantizers
from octavo.core.errors import TrainingError
from octavo.core.model.sharded import is_dtensor, is_replicated
from octavo.core.quantizers.learned_amax import Estimator
from octavo.core.training.schedule import Schedule


def check_wrapping(model: nn.Module, scales: Mapping[str, str]) -> None:
    """Refuse to add parameters to a model whose wrapper has listed them: ranks would train them apart.

    Args:
        model: The model.
        scales: What becomes of scales, by the argument's name.

    Raises:
        TrainingError: scales are to be learned, and FSDP2 or DDP has wrapped the model.
    """
    learned = [f"{name}={way!r}" for name, way in scales.items() if way in get_args(Estimator)]
    divided = [name for name, parameter in model.named_parameters() if is_dtensor(parameter)]
    if learned and (divided or is_replicated(model)):
        wrapper = f"FSDP2 (first {divided[0]!r})" if divided else "DistributedDataParallel"
        raise TrainingError(
            f"{learned[0]} makes scales parameters, and {wrapper} has wrapped the model already, so that their gradients "
            "would stay apart on each rank; make QuantizedTraining first, then wrap the model"
        )


def check_sees_parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that has none of the parameters that FSDP2 keeps.

    Raises:
        TrainingError: there are such parameters, and it has none of them.
    """
    divided = {id(parameter) for parameter in model.parameters() if is_dtensor(parameter)}
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if divided and not divided & known:
        raise TrainingError(
            f"the optimizer has none of the {len(divided)} parameters that fully_shard divided: it was made before, and "
            "would train nothing. Make it after"
        )


def check_freezing(model: nn.Module, schedule: Schedule) -> None:
    """Refuse to freeze learned scales under ZeRO-3, whose optimizer moves every parameter that it has.

    Raises:
        TrainingError: the schedule asks for it; the first scale is named.
    """
    if schedule.freeze_scales_at is None:
        return
    kept = [name for name, quantizer in learned_quantizers(model) if hasattr(quantizer.amax_shift, "ds_id")]
    if kept:
        raise TrainingError(
            f"freeze_scales_at={schedule.freeze_scales_at}: ZeRO-3 keeps the gradients of {kept[0]!r} and "
            f"{len(kept) - 1} other learned scales, so that they cannot be frozen; leave it out, or do not learn scales"
        )
