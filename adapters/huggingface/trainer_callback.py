"""OctavoCallback: quantization-aware training in the stock `transformers.Trainer`, by one line."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback  # noqa: TID253 (octavo.OctavoCallback imports this file on use)

from octavo.adapters.huggingface.trainer_data import first_batches, mean_loss
from octavo.adapters.huggingface.trainer_export import export_of
from octavo.adapters.huggingface.trainer_loss import TrainingLoss, replace_loss
from octavo.core.calibration.forward_loop import ForwardLoop
from octavo.core.console import say
from octavo.core.errors import ConfigError, TrainingError, UnsupportedError, nearest
from octavo.core.model.sharded import sharded_names
from octavo.core.training.finite import watch_loss
from octavo.core.training.metrics import by_layer, summary
from octavo.core.training.scales import ActivationScales, WeightScales, check_scales
from octavo.core.training.schedule import Schedule
from octavo.core.training.training import QuantizedTraining

_NOT_DIVIDED = (
    "the Trainer was asked for fsdp, and every process has the whole model: accelerate divides models on GPUs only, "
    "and this is DDP. On processors, use fully_shard in a loop of your own, or ZeRO-3"
)
Metrics = Literal["summary", "layers", "none"]


class OctavoCallback(TrainerCallback):  # type: ignore[misc]
    """Quantize the model of a Trainer, train it with its quantizers on, and export it.

        Trainer(model, args, train_dataset=…, callbacks=[octavo.OctavoCallback("NVFP4_DEFAULT_CFG", export_dir="out")])

    Quantizers are attached when the Trainer is made, before its optimizer is; calibration runs when training begins.
    What a resumed run needs is in the model's tensors and in the number of the step: checkpoints are the Trainer's
    own, and a resumed run gives the uninterrupted run's weights bit for bit. When training ends the model is one that
    `octavo.quantize` could have returned.

    Args:
        config: A preset's name or a config, with any calibration algorithm.
        calibration: How many batches of the training data, from its start and unshuffled, calibrate; or data as for
            `octavo.quantize`. Resumed runs calibrate nothing.
        schedule: When which quantizers round, and what freezes when.
        weight_scales: `held`, `recomputed` or `lsq`, as in `octavo.QuantizedTraining`.
        activation_scales: `held`, `observed`, `lsq` or `pact`.
        loss: What is minimized in place of the model's own loss (a distillation loss, say). The Trainer must have no
            loss of its own beside it (`compute_loss_func`, label smoothing).
        metrics: What each row of the Trainer's log gets beside its loss: `summary`, the mean and the worst weight's
            signal-to-noise ratio (dB) and scale drift (octaves); `layers`, those of each, too; `none`.
        evaluate_unquantized: Evaluate the weights without rounding, too: `eval_unquantized_loss`.
        export_dir: Folder for the checkpoint of the trained model; rank 0 writes it, block by block where ZeRO-3
            divides the model.
        exporter: In which form (`unified_hf`, `compressed_tensors`, `tensorrt_llm` or a plugin's); None for the one
            that the target loads best.
        target: Engine that will serve it; what it cannot load is refused before training.
        tp: Tensor-parallel size it will be served with.
        quiet: Print nothing.

    Raises:
        ConfigError, PluginError, ExportError: an argument is wrong, or the folder cannot be written.

    The Trainer then raises: ConfigError, PlanError, UnsupportedError, ModeError where `octavo.quantize` does;
    CheckpointError on resuming from a checkpoint of another recipe or of none; TrainingError where the optimizer
    lacks learned scales, the loss is not finite (with the module where it began), or the model is another one.
    """

    def __init__(
        self,
        config: str | Mapping[str, Any],
        *,
        calibration: int | ForwardLoop = 8,
        schedule: Schedule | None = None,
        weight_scales: WeightScales = "held",
        activation_scales: ActivationScales = "held",
        loss: TrainingLoss | None = None,
        metrics: Metrics = "summary",
        evaluate_unquantized: bool = False,
        export_dir: str | Path | None = None,
        exporter: str | None = None,
        target: str | None = None,
        tp: int = 1,
        quiet: bool = False,
    ) -> None:
        check_scales(weight_scales, activation_scales)
        if metrics not in (known := get_args(Metrics)):
            raise ConfigError(
                f"metrics={metrics!r}; expected one of {', '.join(known)}.{nearest(metrics, known)}"
            )
        if isinstance(calibration, int) and (calibration < 0 or isinstance(calibration, bool)):
            raise ConfigError(
                f"calibration={calibration!r}; expected a number of batches, 0 or more, or data"
            )
        self._export = export_of(export_dir, exporter, target, tp)
        self._config, self._quiet = config, quiet
        self._options: dict[str, Any] = {
            "schedule": schedule,
            "weight_scales": weight_scales,
            "activation_scales": activation_scales,
            "target": target,
            "tp": tp,
            "exporter": None if self._export is None else self._export.exporter,
            "quiet": quiet,
        }
        self._calibration, self._loss = calibration, loss
        self._metrics, self._evaluates_unquantized = metrics, evaluate_unquantized
        self._handles: list[RemovableHandle] = []
        self._attached: QuantizedTraining | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Attach the quantizers: before the optimizer is made, and before a checkpoint is loaded.

        Raises:
            UnsupportedError: PEFT wraps the model.
        """
        if hasattr(model, "merge_and_unload"):
            raise UnsupportedError(
                f"the Trainer's model is a {type(model).__name__}: its adapters would be rounded, too. Quantize or "
                "compress the model first, put adapters over it (octavo.add_adapters), train these without the "
                "callback, and call octavo.merge_adapters"
            )
        self._attached = QuantizedTraining(model, self._config, **self._options)

    def go_ahead_of_reporters(self, trainer: Any) -> None:
        """Move to the front of a Trainer's callbacks, whose reporters (TensorBoard, …) then get the metrics, too.

        A Trainer puts the callbacks that it is given behind those of `report_to`, which see a row as it is by then.

        Raises:
            TrainingError: this callback is none of the Trainer's.
        """
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            raise TrainingError(
                "the callback is none of this Trainer's, so it cannot go ahead of its reporters; give it to "
                "Trainer(callbacks=[…])"
            )
        callbacks.remove(self)
        callbacks.insert(0, self)

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Calibrate, or check what a resumed run has loaded."""
        training = self._of(model)
        if self._loss is not None and args.label_smoothing_factor:
            raise ConfigError(
                f"label_smoothing_factor={args.label_smoothing_factor} makes the Trainer compute a loss of its own, in "
                "place of the callback's; leave one of them out"
            )
        if getattr(args, "fsdp", None) and not sharded_names(training.model):
            say(f"warning: {_NOT_DIVIDED}", self._quiet)
        training.begin(state.global_step, self._data(args, state, train_dataloader))
        training.check_optimizer(optimizer)
        self._remove_hooks()
        if self._loss is not None:
            self._handles.append(replace_loss(training.model, self._loss))
        self._handles.append(watch_loss(training.model))

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Turn on what rounds at this step."""
        self._of(model).before_step(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Keep frozen scales from changing."""
        self._of(model).before_optimizer(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Let scales follow the weights."""
        self._of(model).after_step(state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: MutableMapping[str, float] | None = None, **_: Any
    ) -> None:
        """Add the metrics to rows of training."""
        if logs is None or "loss" not in logs or self._attached is None or self._metrics == "none":
            return
        found = self._attached.metrics()
        row = summary(found) | (dict(by_layer(found)) if self._metrics == "layers" else {})
        logs.update(row)
        state.log_history[-1].update(row)

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: MutableMapping[str, float] | None = None,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Evaluate without quantizers, beside each loss that the Trainer found with them."""
        name = next((name for name in metrics or {} if name.endswith("_loss")), None)
        if not self._evaluates_unquantized or self._attached is None or metrics is None or name is None:
            return
        with self._attached.unquantized():
            loss = mean_loss(self._attached.model, eval_dataloader)
        if loss is not None:
            row = {f"{name.removesuffix('_loss')}_unquantized_loss": loss}
            metrics.update(row)
            if state.log_history:
                state.log_history[-1].update(row)

    def on_train_end(
        self, args: Any, state: Any, control: Any, processing_class: Any = None, **_: Any
    ) -> None:
        """Leave a quantized model, and write it."""
        assert self._attached is not None  # noqa: S101 (training began)
        self._remove_hooks()
        self._attached.end()
        if self._export is not None and (state.is_world_process_zero or sharded_names(self._attached.model)):
            self._export.write(self._attached.model, processing_class, self._quiet)

    def _of(self, model: nn.Module | None) -> QuantizedTraining:
        """Return the training of `model`, which may be wrapped by now.

        Raises:
            TrainingError: there is none.
        """
        attached = self._attached
        if attached is None:
            raise TrainingError(
                "the callback was added after the Trainer was made, too late for its quantizers to be in the optimizer "
                "and in checkpoints; give it to Trainer(callbacks=[…])"
            )
        if model is not attached.model and not _contains(model, attached.model):
            raise TrainingError(
                "the Trainer trains another model than the one whose quantizers were attached when it was made; give "
                "it model=… in place of model_init=…"
            )
        return attached

    def _data(self, args: Any, state: Any, train_dataloader: Any) -> ForwardLoop | None:
        """Return what calibrates; a resumed run has nothing to calibrate."""
        if state.global_step > 0:
            return None
        if isinstance(self._calibration, int):
            batch_size = args.per_device_train_batch_size
            return first_batches(train_dataloader, self._calibration, batch_size) or None
        return self._calibration

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _contains(wrapper: nn.Module | None, model: nn.Module) -> bool:
    return wrapper is not None and any(module is model for module in wrapper.modules())
