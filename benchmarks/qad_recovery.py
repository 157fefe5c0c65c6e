"""How much of what quantizing costs comes back by distillation from the original (QAD), in at most 15 CPU-minutes.

Run: python benchmarks/qad_recovery.py --data ../shared/data [--models ..] [--formats ..] [--seeds 0] [--part test]
         [--set NAME=VALUE ..] [--rows FILE] [--json]

A cell is a model and a format. It starts from the best post-training recipe of accuracy_recipes.yaml and trains every
parameter by the divergence of its logits from the original's, on train_sample.txt and on texts that the original
writes. Cells whose perplexity rises by less than 2 % are not trained. Recovered is 1 - (QAD - base) / (PTQ - base), of
perplexity and of the KL divergence to the base model, whose own is 0. The control is the base model trained without
quantizers, by the labels of the same batches with the same steps and learning rates: what training alone gives.
Settings are to be chosen on validation text (stories 301-884, --part validation); the claim is test text (1-300), which
nothing else reads. Scored is the checkpoint, exported and read back, once it is known to score what the trained model
did. CPU seconds are of one thread, calibration and writing included, scoring not.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from accuracy import RECIPES, Bench, config_of, exported, matches
from torch import Tensor, nn

import octavo

FORMATS = ("int4-g32-sym", "int3-g32-sym", "nvfp4-w4a4", "mxfp4-w4a4")
LEAST_LOSS = 1.02  # perplexity over the base's below which there is nothing to recover
GOAL = 0.7
SAME_PERPLEXITY = 1e-4  # relative, between a model and its checkpoint
Loss = Callable[[Any, Tensor], Tensor]
Score = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """How every cell is trained.

    Attributes:
        steps: Optimizer steps (AdamW).
        learning_rate: The highest, after a linear warm-up of a twentieth of the steps; a half cosine to 0 follows. It
            is that of the weights that are rounded; embeddings and norms have a quarter of it.
        samples: Windows in a step, half of them of the training text, half written by the original.
        tokens: Of a window, with the token that begins a text.
        written: Windows that the original writes.
    """

    steps: int = 250
    learning_rate: float = 5e-4
    samples: int = 4
    tokens: int = 256
    written: int = 512

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return an optimizer's groups: the weights inside of blocks, and all other parameters."""
        named = list(model.named_parameters())
        inside = [p for name, p in named if ".layers." in name and p.ndim == 2]
        outside = [p for name, p in named if not (".layers." in name and p.ndim == 2)]
        return [
            {"params": inside, "lr": self.learning_rate},
            {"params": outside, "lr": self.learning_rate / 4},
        ]

    def rate(self, step: int) -> float:
        """Return the factor of the learning rate at a step, counted from 0."""
        warm_up = max(self.steps // 20, 1)
        return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True)
class Cell:
    """What was measured of a model in a format; perplexities and KL divergences to the base model."""

    model: str
    format: str
    recipe: str
    part: str
    seed: int
    base: Score
    ptq: Score
    qad: Score | None = None
    control: Score | None = None
    cpu_s: float = 0.0
    checkpoint: str = ""
    settings: dict[str, float] = field(default_factory=dict)

    def recovered(self, key: str) -> float | None:
        """Return the share of what quantizing costs in `ppl` or `kl` that distillation gave back."""
        if self.qad is None:
            return None
        return 1 - (self.qad[key] - self.base[key]) / (self.ptq[key] - self.base[key])

    def json(self) -> dict[str, Any]:
        """Return the fields, and what was recovered."""
        recovered = {f"recovered_{key}": self.recovered(key) for key in ("ppl", "kl")}
        return asdict(self) | recovered


class Recovery:
    """The cells of one model and seed."""

    def __init__(
        self, bench: Bench, settings: Settings, part: str, seed: int, has_control: bool = True
    ) -> None:
        self.bench, self.settings, self.part, self.seed = bench, settings, part, seed
        self.has_control = has_control
        self._base = self._score(bench.base)

    def cell(self, format_name: str, entry: dict[str, Any]) -> Cell:
        """Quantize, distil, export and score in one format."""
        recipe = next(iter(entry["recipes"]))
        config = config_of(entry, entry["recipes"][recipe])
        model, seconds = self._quantized(self.bench.base, config)
        ptq = self._score(model)
        name = self.bench.folder.name
        cell = Cell(name, format_name, recipe, self.part, self.seed, self._base, ptq)
        if ptq["ppl"] < LEAST_LOSS * self._base["ppl"]:
            return cell
        seconds += self._written[1]
        start = time.process_time()
        distillation = octavo.distill(model, teacher=self.bench.base)
        self._train(model, lambda outputs, ids: distillation.loss(outputs))
        octavo.export_student(model)
        seconds += time.process_time() - start
        qad, checkpoint = self._stored(model)
        control = self._control if self.has_control else None
        return replace(
            cell,
            qad=qad,
            control=control,
            cpu_s=seconds,
            checkpoint=checkpoint,
            settings=asdict(self.settings),
        )

    @cached_property
    def _control(self) -> Score:
        """The score of the base model, trained as every cell is, without quantizers."""
        model = copy.deepcopy(self.bench.base)
        self._train(model, lambda outputs, ids: cross_entropy(outputs.logits, ids))
        return self._score(model)

    @cached_property
    def _text(self) -> Tensor:
        """The tokens of the training text."""
        text = (self.bench.texts / "train_sample.txt").read_text(encoding="utf-8")
        ids = self.bench.tokenizer(self.bench.common.single(text), add_special_tokens=False)["input_ids"]
        return torch.tensor(ids)

    def _quantized(self, model: nn.Module, config: dict[str, Any]) -> tuple[nn.Module, float]:
        """Return a quantized copy, and the CPU seconds that it took."""
        model, batches = copy.deepcopy(model), self.bench.calibration(self.seed)
        torch.manual_seed(self.seed)
        start = time.process_time()
        octavo.quantize(model, config, batches, quiet=True)
        return model, time.process_time() - start

    def _train(self, model: nn.Module, loss: Loss) -> None:
        settings = self.settings
        optimizer = torch.optim.AdamW(settings.groups(model), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.rate)
        model.train()
        for step, ids in enumerate(self._batches()):
            value = loss(model(ids), ids)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 50 == 49:
                print(f"step {step + 1}: {value.item():.4f}", file=sys.stderr, flush=True)
        model.eval()

    def _batches(self) -> Iterator[Tensor]:
        """Yield for each step windows at random places of the text, and others that were written: int64."""
        generator = torch.Generator().manual_seed(self.seed)
        half, first = self.settings.samples // 2, self.bench.tokenizer.bos_token_id
        windows, texts = self._text.unfold(0, self.settings.tokens - 1, 1), self._written[0]
        for _ in range(self.settings.steps):
            read, written = (
                torch.randint(0, len(rows), (half,), generator=generator) for rows in (windows, texts)
            )
            begun = torch.nn.functional.pad(windows[read], (1, 0), value=first)
            yield torch.cat((begun, texts[written]))

    @cached_property
    def _written(self) -> tuple[Tensor, float]:
        """Texts of the base model, as in LLM-QAT (arXiv:2305.17888), int64 [written, tokens], and their CPU seconds."""
        torch.manual_seed(self.seed)
        start = time.process_time()
        first = torch.full((self.settings.written, 1), self.bench.tokenizer.bos_token_id)
        length = self.settings.tokens
        rows = self.bench.base.generate(  # type: ignore[operator]
            first,
            attention_mask=torch.ones_like(first),
            do_sample=True,
            top_k=0,
            min_length=length,
            max_length=length,
            pad_token_id=self.bench.tokenizer.eos_token_id,
        )
        return rows, time.process_time() - start

    def _score(self, model: nn.Module) -> Score:
        found = self.bench.judge(self.part)(model)
        return {key: found[key] for key in ("ppl", "kl")}

    def _stored(self, model: nn.Module) -> tuple[Score, str]:
        """Export, read back and score that; exit where it does not score what the trained model does."""
        with tempfile.TemporaryDirectory() as temporary:
            dialect = exported(model, Path(temporary) / "out")
            found = self._score(octavo.load_quantized(Path(temporary) / "out"))
        with octavo.finalized(model, dialect):
            expected = self._score(model)
        if abs(found["ppl"] / expected["ppl"] - 1) > SAME_PERPLEXITY:
            sys.exit(
                f"{self.bench.folder.name}: the checkpoint read back scores {found}, what was trained {expected}"
            )
        return found, dialect


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(1)
    table = yaml.safe_load(RECIPES.read_text(encoding="utf-8"))
    texts, harness = options.data / "text-tinystories", options.data.parent / "tools" / "accuracy"
    cells = [Cell(**row) for row in read_rows(options.rows)]
    for name in options.models.split(","):
        bench = Bench(options.data / name, texts, harness, options.stories)
        for seed in map(int, options.seeds.split(",")):
            recovery = Recovery(
                bench, Settings(**dict(options.set)), options.part, seed, not options.no_control
            )
            for format_name in (name for name in FORMATS if matches(name, options.formats)):
                if any(is_of(cell, name, format_name, options.part, seed) for cell in cells):
                    continue
                cells.append(recovery.cell(format_name, table[format_name]))
                keep(cells[-1], options.rows)
    print(json.dumps([cell.json() for cell in cells], indent=2) if options.json else markdown(cells))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the models and text-tinystories"
    )
    parser.add_argument("--models", default="stories260k-hf,babyllama105-hf")
    parser.add_argument("--formats", default="*", help="globs, separated by commas")
    parser.add_argument("--seeds", default="0", help="of the calibration windows and of the batches")
    parser.add_argument("--part", default="test", choices=("test", "validation"))
    parser.add_argument("--stories", type=int, help="judge by so many of the part only, for a quick look")
    parser.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="another setting"
    )
    parser.add_argument("--no-control", action="store_true", help="leave the control out")
    parser.add_argument(
        "--rows", type=Path, help="file of finished cells, not run again; one for each setting"
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def setting(text: str) -> tuple[str, float]:
    """Return the name and the value of a field of `Settings`, of its own type."""
    name, _, value = text.partition("=")
    known = asdict(Settings())
    if name not in known:
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=VALUE with a name of {', '.join(known)}")
    return name, type(known[name])(value)


def read_rows(file: Path | None) -> list[dict[str, Any]]:
    if file is None or not file.exists():
        return []
    return [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()]


def is_of(cell: Cell, model: str, format_name: str, part: str, seed: int) -> bool:
    return (cell.model, cell.format, cell.part, cell.seed) == (model, format_name, part, seed)


def keep(cell: Cell, file: Path | None) -> None:
    """Show a finished cell, and write it where it is not lost."""
    row = json.dumps(asdict(cell))
    print(row, file=sys.stderr, flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(row + "\n")


def markdown(cells: list[Cell]) -> str:
    """Return one table, perplexity and KL side by side; recovery of less than 70 % is bold."""
    heads = [
        "model", "format", "seed", "base", "PTQ", "QAD", "recovered", "PTQ KL", "QAD KL", "of KL recovered",
        "control", "its KL", "steps at rate", "CPU s",
    ]  # fmt: skip
    rows = [heads, ["---"] * len(heads), *map(columns, cells)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def columns(cell: Cell) -> list[str]:
    start = [cell.model, cell.format, str(cell.seed), f"{cell.base['ppl']:.3f}", f"{cell.ptq['ppl']:.3f}"]
    if cell.qad is None:
        return [*start, "not trained: under 2 %", "", f"{cell.ptq['kl']:.4f}", *[""] * 6]
    recovered = [share(cell.recovered(key)) for key in ("ppl", "kl")]
    control = cell.control
    return [
        *start,
        f"{cell.qad['ppl']:.3f}",
        recovered[0],
        f"{cell.ptq['kl']:.4f}",
        f"{cell.qad['kl']:.4f}",
        recovered[1],
        "not measured" if control is None else f"{control['ppl']:.3f}",
        "" if control is None else f"{control['kl']:.4f}",
        f"{cell.settings['steps']:.0f} at {cell.settings['learning_rate']:g}",
        f"{cell.cpu_s:.0f}",
    ]


def share(recovered: float | None) -> str:
    text = f"{recovered:.0%}"
    return text if recovered is not None and recovered >= GOAL else f"**{text}**"


if __name__ == "__main__":
    main()
