"""Imported checkpoints quantized inside Megatron-core at several layouts, and exported as Hugging Face checkpoints."""

from __future__ import annotations

import octavo
from helpers.megatron_checkpoints import FORMATS, LAYOUTS
from helpers.megatron_cpu import lay_out, on_cpu
from launched.common import ARGUMENTS, FOLDER, joined, report
from launched.megatron_huggingface import logits

on_cpu()


def main() -> None:
    from octavo.adapters.megatron_core.conversion.exporting import export_huggingface
    from octavo.adapters.megatron_core.conversion.importing import import_huggingface

    reports = {}
    with joined():
        for argument in ARGUMENTS:
            kind, layout, name = argument.split(":")
            lay_out(**LAYOUTS[layout])
            model = import_huggingface(FOLDER / kind, make_vocab_size_divisible_by=4).eval()
            octavo.quantize(model, FORMATS[name], lambda stage: logits(stage, 0), quiet=True)
            written = export_huggingface(
                model, FOLDER / kind, FOLDER / f"{kind}-{layout}-{name}", max_shard_bytes=100_000, quiet=True
            )
            reports[argument] = None if written is None else written.num_tensors
        report(tensors=reports)


if __name__ == "__main__":
    main()
