"""`octavo quantize`: load, quantize, calibrate, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, output
from octavo.cli.skeleton import check_needs_no_data, plan_checkpoint
from octavo.core.errors import ConfigError
from octavo.core.model.atomic_folder import check_place
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
    calib_data: Annotated[
        str | None, typer.Option(help="Text file, .jsonl of documents, or dataset (name or name#split).")
    ] = None,
    calib_size: options.NumSamples = 512,
    seq_len: options.SequenceLength = 512,
    batch_size: options.BatchSize = 8,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that is not empty.")
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Quantize MODEL and write a Hugging Face checkpoint to --out: unified, or as --target loads it."""
    import octavo

    config, load_as = options.config_from(preset, kv, recipe, block_size), options.dtype_from(dtype)
    _check_out(model, out, overwrite)
    made = plan_checkpoint(model, config, load_as, trust_remote_code, target, tp)
    made.check()
    tokenizer = batches = None
    if calib_data is not None or _has_tokenizer(model):
        tokenizer = plugins().load_tokenizer(model, trust_remote_code)
    if calib_data is None:
        check_needs_no_data(made)
    else:
        request = DataRequest(calib_data, calib_size, seq_len, batch_size, seed)
        batches = plugins().text_batches(tokenizer, request)
    loaded = plugins().load_model(model, load_as, trust_remote_code, quiet)  # the slow part, after all checks
    octavo.quantize(loaded, config, batches, quiet=quiet, target=target, tp=tp)
    report = octavo.export_hf_checkpoint(
        loaded, export_dir=out, tokenizer=tokenizer, overwrite=overwrite, quiet=quiet, target=target
    )
    if as_json:
        output.print_json(
            {
                "directory": str(report.directory),
                "num_tensors": report.num_tensors,
                "num_bytes": report.num_bytes,
                "warnings": list(report.warnings),
                "exporter": report.exporter,
                "differences": list(report.differences),
            }
        )
    elif not quiet:
        output.print_text(
            f"{report.directory}: {report.num_tensors} tensors, {report.num_bytes / 1e6:,.2f} MB"
        )


def _check_out(model: Path, out: Path, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or that holds the model: replacing it would delete the original."""
    if model.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"--out {out} is MODEL ({model}) or a folder above it, which writing would replace; give another folder"
        )
    check_place(out.resolve(), overwrite)


def _has_tokenizer(model: Path) -> bool:
    return any(path.name.startswith(("tokenizer", "vocab")) for path in model.iterdir())
