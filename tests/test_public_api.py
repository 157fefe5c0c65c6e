"""The public names, frozen: adding or removing one is a decision."""

from __future__ import annotations

import pytest

import octavo

ERRORS = {
    "CalibrationError", "CheckpointError", "ConfigError", "ExportError", "ModeError", "OctavoError", "PlanError",
    "PluginError", "ShapeError", "TrainingError", "UnsupportedError",
}  # fmt: skip
PUBLIC = ERRORS | {
    "DistillConfig", "Distillation", "OctavoCallback", "PackedTensor", "Plan", "QuantModule", "QuantSpec",
    "QuantizedTraining", "Schedule", "SequentialQuantizer", "Statistics", "TeacherLogits", "TensorQuantizer",
    "add_adapters", "calibrate", "collect_statistics", "compare", "compress", "convert_checkpoint",
    "decompress", "disable_quantizer", "distill", "enable_huggingface", "enable_quantizer",
    "export_hf_checkpoint", "export_student", "export_tensorrt_llm_checkpoint", "finalize", "finalized",
    "fold_batch_norm", "fold_weight", "history", "hookimpl", "last_training", "load_quantized",
    "load_recipe", "load_training", "merge_adapters", "merge_configs", "perplexity", "plan", "plugins",
    "preset", "preset_names", "print_quant_summary", "quantize", "quantize_checkpoint",
    "reestimate_batch_norm", "register", "reshard_tensorrt_llm", "restore", "save", "save_training",
    "set_quantizer_attribute", "set_quantizer_by_cfg", "text_batches", "unfinalize", "unquantize",
    "unregister", "verify_checkpoint", "with_block_size",
}  # fmt: skip


def test_public_names() -> None:
    assert set(octavo.__all__) == PUBLIC
    assert {name for name in PUBLIC if getattr(octavo, name) is None} == set()
    assert set(dir(octavo)) == {*PUBLIC, *octavo.preset_names(), "__version__"}


def test_every_error_is_an_octavo_error() -> None:
    assert {cls.__name__ for cls in octavo.OctavoError.__subclasses__()} >= ERRORS - {"OctavoError"}


def test_a_preset_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="no preset 'FP9_CFG'"):
        octavo.FP9_CFG  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        octavo.quantise  # noqa: B018


def test_each_use_of_a_preset_is_a_copy_of_its_own() -> None:
    octavo.FP8_DEFAULT_CFG["quant_cfg"].clear()

    assert octavo.preset("FP8_DEFAULT_CFG") == octavo.FP8_DEFAULT_CFG
