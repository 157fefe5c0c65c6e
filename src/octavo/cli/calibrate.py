"""`octavo calibrate`: statistics of a model, once, for any number of `octavo quantize --stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, output
from octavo.core.calibration.statistics.sizes import parse_bytes
from octavo.core.errors import ConfigError
from octavo.core.model.atomic_folder import check_place
from octavo.core.plugins import plugins
from octavo.core.plugins.hookspecs import DataRequest


def calibrate(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder to write the statistics to.")],
    calib_data: Annotated[
        str, typer.Option(help="Text file, .jsonl of documents, or dataset (name or name#split).")
    ],
    no_gram: Annotated[
        bool, typer.Option("--no-gram", help="Keep no second moments, which are the largest part.")
    ] = False,
    held_tokens: Annotated[int, typer.Option(min=0, help="Tokens of each input to keep, at most.")] = 256,
    outputs: Annotated[bool, typer.Option("--outputs", help="Look at layers' outputs, too.")] = False,
    all_experts: Annotated[
        bool, typer.Option("--all-experts", help="Show every token to every expert.")
    ] = False,
    stats_budget: options.StatsBudget = None,
    skip_bad_batches: options.SkipBadBatches = False,
    calib_size: options.NumSamples = 512,
    seq_len: options.SequenceLength = 512,
    batch_size: options.BatchSize = 8,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Run text through MODEL once and write what calibration may ask for to --out."""
    import octavo

    load_as = options.dtype_from(dtype)
    parse_bytes(stats_budget)
    if model.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"--out {out} is MODEL ({model}) or a folder above it; give another folder")
    check_place(out.resolve(), overwrite)
    plugins().check_unquantized(model)
    tokenizer = plugins().load_tokenizer(model, trust_remote_code)
    request = DataRequest(calib_data, calib_size, seq_len, batch_size, seed)
    batches = plugins().text_batches(tokenizer, request)
    loaded = plugins().load_model(model, load_as, trust_remote_code, quiet)
    statistics = octavo.collect_statistics(
        loaded,
        batches,
        gram=not no_gram,
        held_tokens=held_tokens,
        outputs=outputs,
        all_experts=all_experts,
        stats_budget=stats_budget,
        skip_bad_batches=skip_bad_batches,
        quiet=quiet,
    )
    statistics.save(out, overwrite)
    num_bytes = sum(path.stat().st_size for path in out.iterdir())
    if as_json:
        shown = {"directory": str(out), "num_inputs": len(statistics.inputs), "num_bytes": num_bytes}
        output.print_json({**shown, **statistics.describe()})
    elif not quiet:
        output.print_text(f"{out}: statistics of {len(statistics.inputs)} inputs, {num_bytes / 1e6:,.2f} MB")
