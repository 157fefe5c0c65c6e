"""What a training script of Megatron's style calls: around its model provider, and to calibrate by its forward step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from octavo.adapters.megatron_core.checkpoint import attach_modes_of
from octavo.core.errors import CalibrationError


def with_modes_of(
    model_provider: Callable[..., nn.Module], directory: str | Path
) -> Callable[..., nn.Module]:
    """Return a model provider whose models are quantized as a checkpoint's was; the script loads the tensors itself.

    A script that is started again finds its own checkpoints quantized, since they carry the record, and goes on::

        pretrain(datasets, with_modes_of(model_provider, args.load), model_type, forward_step)

    Args:
        model_provider: Returns a plain model for `pre_process` and `post_process` and whatever else it is called with.
        directory: A distributed checkpoint, of a quantized model or of a plain one, which leaves models plain. In a
            tree of Megatron-LM's that is the folder of an iteration (`iter_0000100`).

    Raises:
        OctavoError: when called, as `load` says.
    """

    def provider(*args: Any, **kwargs: Any) -> nn.Module:
        model = model_provider(*args, **kwargs)
        attach_modes_of(model, directory)
        return model

    return provider


def schedule_loop(
    forward_step_func: Callable[..., Any],
    batches: Iterable[Any],
    num_batches: int,
    seq_length: int,
    micro_batch_size: int,
    wrapped: nn.Module | None = None,
) -> Callable[[nn.Module], None]:
    """Return calibration data for `octavo.quantize` that runs through Megatron-core's own schedule, forward only.

    With it stages of a pipeline are calibrated together: every rank calls `octavo.quantize` with its stage.

    Args:
        forward_step_func: The script's, `(data_iterator, model) -> (output, loss function)`.
        batches: What its data iterator yields: `num_batches` or more.
        num_batches: How many to run.
        seq_length: Tokens of a sequence.
        micro_batch_size: Sequences of a batch.
        wrapped: What the script calls in place of the model (DDP, `Float16Module`), if anything.

    Raises:
        CalibrationError: `num_batches` is below 1.
    """
    if num_batches < 1:
        raise CalibrationError(f"calibration needs at least 1 batch, found num_batches={num_batches}")

    def loop(model: nn.Module) -> None:
        from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

        get_forward_backward_func()(
            forward_step_func=forward_step_func,
            data_iterator=iter(batches),
            model=[model if wrapped is None else wrapped],
            num_microbatches=num_batches,
            seq_length=seq_length,
            micro_batch_size=micro_batch_size,
            forward_only=True,
        )

    return loop
