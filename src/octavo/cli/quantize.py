"""`octavo quantize`: load, quantize, calibrate, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, output
from octavo.cli.export import HUGGING_FACE, check_dialect, export, exporter_name
from octavo.cli.skeleton import check_needs_no_data, plan_checkpoint
from octavo.cli.stream import check_streamed, stream_checkpoint
from octavo.core.errors import ConfigError
from octavo.core.model.atomic_folder import check_place
from octavo.core.plan.targets import check_stored
from octavo.core.plugins import plugins
from octavo.core.plugins.hookspecs import DataRequest


def quantize(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint to.")],
    preset: options.Preset = None,
    kv: options.Kv = None,
    recipe: options.Recipe = None,
    block_size: options.BlockSize = None,
    target: options.Target = None,
    tp: options.TensorParallel = 1,
    dialect: Annotated[
        str,
        typer.Option(
            help="huggingface, or tensorrt_llm: for TensorRT-LLM's engine builder, over --tp and --pp ranks."
        ),
    ] = HUGGING_FACE,
    pp: Annotated[int, typer.Option("--pp", help="Stages of a TensorRT-LLM checkpoint.")] = 1,
    calib_data: options.CalibrationData = None,
    stats: Annotated[
        Path | None, typer.Option(help="What `octavo calibrate` wrote, instead of --calib-data.")
    ] = None,
    stats_budget: options.StatsBudget = None,
    skip_bad_batches: options.SkipBadBatches = False,
    calib_size: options.NumSamples = 512,
    seq_len: options.SequenceLength = 512,
    batch_size: options.BatchSize = 8,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    stream: options.Stream = False,
    resume: options.Resume = False,
    activation_budget: options.ActivationBudget = "4GB",
    log_json: options.LogJson = None,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Quantize MODEL and write a Hugging Face checkpoint to --out: unified, or as --target loads it."""
    import octavo

    check_dialect(dialect, target, pp)
    engine = (
        target if dialect == HUGGING_FACE else None
    )  # the builder is none of the engines that a plan knows
    config, load_as = options.config_from(preset, kv, recipe, block_size), options.dtype_from(dtype)
    if stats is not None and calib_data is not None:
        raise ConfigError("give either --calib-data or --stats, not both")
    check_streamed(stream, resume, dialect, stats, skip_bad_batches)
    _check_out(model, out, overwrite or resume)
    if stream:
        request = (
            None if calib_data is None else DataRequest(calib_data, calib_size, seq_len, batch_size, seed)
        )
        streamed = stream_checkpoint(
            model,
            out,
            request,
            _has_tokenizer(model),
            config=config,
            target=target,
            tp=tp,
            dtype=load_as,
            trust_remote_code=trust_remote_code,
            resume=resume,
            overwrite=overwrite,
            activation_budget=activation_budget,
            stats_budget=stats_budget,
            quiet=quiet,
            log_json=log_json,
        )
        output.print_export(streamed, as_json, quiet)
        return
    statistics = None if stats is None else octavo.Statistics.load(stats)
    made = plan_checkpoint(model, config, load_as, trust_remote_code, engine, tp, stats_budget)
    made.check()
    if engine is None:
        check_stored(made.layers, exporter_name(dialect))
    tokenizer = batches = None
    if calib_data is not None or _has_tokenizer(model):
        tokenizer = plugins().load_tokenizer(model, trust_remote_code)
    if calib_data is None and statistics is None:
        check_needs_no_data(made)
    elif calib_data is not None:
        request = DataRequest(calib_data, calib_size, seq_len, batch_size, seed)
        batches = plugins().text_batches(tokenizer, request)
    loaded = plugins().load_model(model, load_as, trust_remote_code, quiet)  # the slow part, after all checks
    octavo.quantize(
        loaded,
        config,
        batches,
        quiet=quiet,
        target=engine,
        tp=tp,
        statistics=statistics,
        stats_budget=stats_budget,
        skip_bad_batches=skip_bad_batches,
    )
    report = export(loaded, out, dialect, target, tp, pp, tokenizer, overwrite=overwrite, quiet=quiet)
    output.print_export(report, as_json, quiet)


def _check_out(model: Path, out: Path, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or that holds the model: replacing it would delete the original."""
    if model.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"--out {out} is MODEL ({model}) or a folder above it, which writing would replace; give another folder"
        )
    check_place(out.resolve(), overwrite)


def _has_tokenizer(model: Path) -> bool:
    return any(path.name.startswith(("tokenizer", "vocab")) for path in model.iterdir())
