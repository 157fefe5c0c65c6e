"""Writing the checkpoint that `octavo quantize` was asked for, in either dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from octavo.core.errors import ConfigError, nearest
from octavo.core.model.export_report import ExportReport

HUGGING_FACE, TENSORRT_LLM = DIALECTS = ("huggingface", "tensorrt_llm")


def check_dialect(dialect: str, target: str | None, pp: int) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: the dialect is unknown, stages are asked for in one that has none, or the target does not read it.
    """
    if dialect not in DIALECTS:
        raise ConfigError(
            f"unknown --dialect {dialect!r}; known: {', '.join(DIALECTS)}.{nearest(dialect, DIALECTS)}"
        )
    if dialect == HUGGING_FACE and pp != 1:
        raise ConfigError(f"--pp {pp} divides checkpoints of --dialect {TENSORRT_LLM} only; found {dialect}")
    if dialect == TENSORRT_LLM and target not in (None, "trtllm"):
        raise ConfigError(
            f"--dialect {TENSORRT_LLM} is read by TensorRT-LLM's engine builder (--target trtllm), found --target "
            f"{target}; leave --dialect out"
        )


def exporter_name(dialect: str) -> str:
    """Return the exporter that writes a dialect where no target chooses."""
    return "unified_hf" if dialect == HUGGING_FACE else dialect


def export(
    model: nn.Module,
    out: Path,
    dialect: str,
    target: str | None,
    tp: int,
    pp: int,
    tokenizer: Any,
    **options: Any,
) -> ExportReport:
    """Write the model; options are those that both exports have."""
    import octavo

    if dialect == HUGGING_FACE:
        return octavo.export_hf_checkpoint(
            model, export_dir=out, tokenizer=tokenizer, target=target, **options
        )
    return octavo.export_tensorrt_llm_checkpoint(
        model,
        export_dir=out,
        inference_tensor_parallel=tp,
        inference_pipeline_parallel=pp,
        target=target,
        **options,
    )
