"""Train adapters over a model in 4 bits with the stock Trainer, merge them, and write a 4-bit checkpoint.

Run: python examples/qlora.py [--format int4|nvfp4] [--steps 100] [--out DIR] [--json]
Twice, on the bundled model and texts, with the perplexity of other texts at each step:
  beside   adapters beside packed weights, which are 4 bits each while they train (QLoRA); merging rounds the sums, and
           some of what was trained is lost
  inside   adapters on the weights, rounded together with them; merging changes nothing
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import octavo

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH leaves it out
from qat_trainer import DATA, MODEL, samples, show, weights_of

FORMATS = {"int4": weights_of(4), "nvfp4": octavo.W4A16_NVFP4_CFG}
EXPORTER = "compressed_tensors"
LAYERS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=FORMATS, default="int4")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, help="folder for the exported models")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    test = octavo.text_batches(tokenizer, DATA / "test.jsonl", num_samples=32, sequence_length=128)

    model = AutoModelForCausalLM.from_pretrained(MODEL)
    rows = {"original": octavo.perplexity(model, test)}
    octavo.quantize(model, FORMATS[options.format], quiet=True)
    rows["rounded, not trained"] = octavo.perplexity(model, test)

    packed = octavo.compress(copy.deepcopy(model), dialect=EXPORTER, quiet=True)
    targets: dict[str, dict[str, Any]] = {
        "beside": {"target_modules": LAYERS},
        "inside": {"target_modules": [], "target_parameters": [f"{name}.weight" for name in LAYERS]},
    }
    with tempfile.TemporaryDirectory() as temporary:
        for place, base in (("beside", packed), ("inside", model)):
            config = LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", **targets[place])
            adapted = octavo.add_adapters(base, config)
            out = (options.out or Path(temporary)) / place
            for stage, found in stages(adapted, tokenizer, out, options.steps):
                rows[f"{place}: {stage}"] = octavo.perplexity(found, test)
    show(rows, options.json)


def stages(adapted: Any, tokenizer: Any, out: Path, steps: int) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the model with trained adapters, with merged ones, and as its checkpoint is read back."""
    train(adapted, tokenizer, out, steps)
    yield "trained", adapted
    merged = octavo.merge_adapters(adapted, quiet=True)
    with octavo.finalized(merged, EXPORTER):  # the numbers of the checkpoint
        yield "merged", merged
    octavo.plugins().exporter(EXPORTER).export(merged, out, tokenizer=tokenizer, quiet=True)
    yield "exported", octavo.load_quantized(out)


def train(model: torch.nn.Module, tokenizer: Any, out: Path, steps: int) -> None:
    arguments = TrainingArguments(
        str(out),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(model=model, args=arguments, train_dataset=samples(tokenizer)).train()


if __name__ == "__main__":
    main()
