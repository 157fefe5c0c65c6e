"""Octavo: model quantization between model frameworks and deployment engines.

Every public name is imported on first use, so that `import octavo` costs torch and little else. Presets
(`octavo.FP8_DEFAULT_CFG`, …) are plain dicts; `octavo.preset_names()` lists them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from octavo._builtin_plugins import BUILTIN_PLUGINS
from octavo.core.plugins.builtin import declare_builtin_plugins

if TYPE_CHECKING:
    from octavo.adapters.huggingface.from_pretrained import enable_huggingface
    from octavo.adapters.huggingface.peft_adapters import add_adapters
    from octavo.adapters.huggingface.peft_merge import merge_adapters
    from octavo.adapters.huggingface.trainer_callback import OctavoCallback
    from octavo.core.calibration.finalize import finalize, finalized, unfinalize
    from octavo.core.calibration.fold import fold_weight
    from octavo.core.calibration.quantize import calibrate, quantize, unquantize
    from octavo.core.calibration.quantizer_changes import (
        disable_quantizer,
        enable_quantizer,
        set_quantizer_attribute,
        set_quantizer_by_cfg,
    )
    from octavo.core.calibration.statistics.collect import collect_statistics
    from octavo.core.calibration.statistics.statistics import Statistics
    from octavo.core.calibration.summary import print_quant_summary
    from octavo.core.compression.compress import compress
    from octavo.core.compression.decompress import decompress
    from octavo.core.config import load_recipe, merge_configs, preset, preset_names, with_block_size
    from octavo.core.conversion.convert import convert_checkpoint
    from octavo.core.distillation import Distillation, DistillConfig, TeacherLogits, distill, export_student
    from octavo.core.errors import (
        CalibrationError,
        CheckpointError,
        ConfigError,
        ExportError,
        ModeError,
        OctavoError,
        PlanError,
        PluginError,
        ShapeError,
        TrainingError,
        UnsupportedError,
    )
    from octavo.core.evaluation.language import compare, perplexity
    from octavo.core.evaluation.read_back import load_quantized
    from octavo.core.formats import QuantSpec
    from octavo.core.modes import history
    from octavo.core.modes.storage import restore, save
    from octavo.core.modules import QuantModule, register, unregister
    from octavo.core.packed import PackedTensor
    from octavo.core.plan import Plan, plan
    from octavo.core.plugins import plugins
    from octavo.core.plugins.markers import hookimpl
    from octavo.core.plugins.text import text_batches
    from octavo.core.quantizers import SequentialQuantizer, TensorQuantizer
    from octavo.core.streaming.quantize_checkpoint import quantize_checkpoint
    from octavo.core.training import QuantizedTraining, Schedule
    from octavo.core.training.fold_batch_norm import fold_batch_norm
    from octavo.core.training.reestimate_batch_norm import reestimate_batch_norm
    from octavo.core.training.saved_state import last_training, load_training, save_training
    from octavo.core.verification.verify import verify_checkpoint
    from octavo.exporters.tensorrt_llm.reshard import reshard_tensorrt_llm
    from octavo.exporters.tensorrt_llm.writer import export_tensorrt_llm_checkpoint
    from octavo.exporters.unified_hf.writer import export_hf_checkpoint

_MODULE_OF = {
    "CalibrationError": "octavo.core.errors",
    "CheckpointError": "octavo.core.errors",
    "ConfigError": "octavo.core.errors",
    "DistillConfig": "octavo.core.distillation",
    "Distillation": "octavo.core.distillation",
    "ExportError": "octavo.core.errors",
    "ModeError": "octavo.core.errors",
    "OctavoCallback": "octavo.adapters.huggingface.trainer_callback",
    "OctavoError": "octavo.core.errors",
    "PackedTensor": "octavo.core.packed",
    "Plan": "octavo.core.plan",
    "PlanError": "octavo.core.errors",
    "PluginError": "octavo.core.errors",
    "QuantModule": "octavo.core.modules",
    "QuantSpec": "octavo.core.formats",
    "QuantizedTraining": "octavo.core.training",
    "Schedule": "octavo.core.training",
    "SequentialQuantizer": "octavo.core.quantizers",
    "ShapeError": "octavo.core.errors",
    "Statistics": "octavo.core.calibration.statistics.statistics",
    "TeacherLogits": "octavo.core.distillation",
    "TensorQuantizer": "octavo.core.quantizers",
    "TrainingError": "octavo.core.errors",
    "UnsupportedError": "octavo.core.errors",
    "add_adapters": "octavo.adapters.huggingface.peft_adapters",
    "calibrate": "octavo.core.calibration.quantize",
    "collect_statistics": "octavo.core.calibration.statistics.collect",
    "compare": "octavo.core.evaluation.language",
    "compress": "octavo.core.compression.compress",
    "convert_checkpoint": "octavo.core.conversion.convert",
    "decompress": "octavo.core.compression.decompress",
    "disable_quantizer": "octavo.core.calibration.quantizer_changes",
    "distill": "octavo.core.distillation",
    "enable_huggingface": "octavo.adapters.huggingface.from_pretrained",
    "enable_quantizer": "octavo.core.calibration.quantizer_changes",
    "export_hf_checkpoint": "octavo.exporters.unified_hf.writer",
    "export_student": "octavo.core.distillation",
    "export_tensorrt_llm_checkpoint": "octavo.exporters.tensorrt_llm.writer",
    "finalize": "octavo.core.calibration.finalize",
    "finalized": "octavo.core.calibration.finalize",
    "fold_batch_norm": "octavo.core.training.fold_batch_norm",
    "fold_weight": "octavo.core.calibration.fold",
    "history": "octavo.core.modes",
    "hookimpl": "octavo.core.plugins.markers",
    "last_training": "octavo.core.training.saved_state",
    "load_quantized": "octavo.core.evaluation.read_back",
    "load_recipe": "octavo.core.config",
    "merge_adapters": "octavo.adapters.huggingface.peft_merge",
    "load_training": "octavo.core.training.saved_state",
    "merge_configs": "octavo.core.config",
    "perplexity": "octavo.core.evaluation.language",
    "plan": "octavo.core.plan",
    "plugins": "octavo.core.plugins",
    "preset": "octavo.core.config",
    "preset_names": "octavo.core.config",
    "print_quant_summary": "octavo.core.calibration.summary",
    "quantize": "octavo.core.calibration.quantize",
    "reestimate_batch_norm": "octavo.core.training.reestimate_batch_norm",
    "quantize_checkpoint": "octavo.core.streaming.quantize_checkpoint",
    "register": "octavo.core.modules",
    "reshard_tensorrt_llm": "octavo.exporters.tensorrt_llm.reshard",
    "restore": "octavo.core.modes.storage",
    "save": "octavo.core.modes.storage",
    "save_training": "octavo.core.training.saved_state",
    "set_quantizer_attribute": "octavo.core.calibration.quantizer_changes",
    "set_quantizer_by_cfg": "octavo.core.calibration.quantizer_changes",
    "text_batches": "octavo.core.plugins.text",
    "unfinalize": "octavo.core.calibration.finalize",
    "unquantize": "octavo.core.calibration.quantize",
    "unregister": "octavo.core.modules",
    "verify_checkpoint": "octavo.core.verification.verify",
    "with_block_size": "octavo.core.config",
}

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "DistillConfig",
    "Distillation",
    "ExportError",
    "ModeError",
    "OctavoCallback",
    "OctavoError",
    "PackedTensor",
    "Plan",
    "PlanError",
    "PluginError",
    "QuantModule",
    "QuantSpec",
    "QuantizedTraining",
    "Schedule",
    "SequentialQuantizer",
    "ShapeError",
    "Statistics",
    "TeacherLogits",
    "TensorQuantizer",
    "TrainingError",
    "UnsupportedError",
    "add_adapters",
    "calibrate",
    "collect_statistics",
    "compare",
    "compress",
    "convert_checkpoint",
    "decompress",
    "disable_quantizer",
    "distill",
    "enable_huggingface",
    "enable_quantizer",
    "export_hf_checkpoint",
    "export_student",
    "export_tensorrt_llm_checkpoint",
    "finalize",
    "finalized",
    "fold_batch_norm",
    "fold_weight",
    "history",
    "hookimpl",
    "last_training",
    "load_quantized",
    "load_recipe",
    "load_training",
    "merge_adapters",
    "merge_configs",
    "perplexity",
    "plan",
    "plugins",
    "preset",
    "preset_names",
    "print_quant_summary",
    "quantize",
    "quantize_checkpoint",
    "reestimate_batch_norm",
    "register",
    "reshard_tensorrt_llm",
    "restore",
    "save",
    "save_training",
    "set_quantizer_attribute",
    "set_quantizer_by_cfg",
    "text_batches",
    "unfinalize",
    "unquantize",
    "unregister",
    "verify_checkpoint",
    "with_block_size",
]
__version__ = "0.1.0"

declare_builtin_plugins(BUILTIN_PLUGINS)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    elif name.endswith(("_CFG", "_CONFIG")):
        from octavo.core.config import preset, preset_names
        from octavo.core.errors import nearest

        if name not in (known := preset_names()):
            raise AttributeError(
                f"module 'octavo' has no preset {name!r}; octavo.preset_names() lists them.{nearest(name, known)}"
            )
        return preset(name)  # not kept: users append their own entries to it
    else:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from octavo.core.config import preset_names

    return sorted({*__all__, "__version__", *preset_names()})
