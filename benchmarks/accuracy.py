"""What quantizing costs in accuracy: KL to the base model, perplexity, top-1, and CPU seconds, beside the peers'.

Run: python benchmarks/accuracy.py --data ../shared/data [--models ..] [--formats ..] [--recipes ..] [--seeds 0,1,2]
         [--parts test,validation] [--peer TOOL=PYTHON ..] [--rows GLOBS] [--cross-check] [--json]

Formats and recipes: accuracy_recipes.yaml. The judge, the calibration windows and the peers' scripts are the harness
under ../shared/tools/accuracy, which shares no code with Octavo; its README says how to make the peers' environments.
Without --peer, a peer's row is the best of ../shared/specs/accuracy-baselines.md, marked so. Recipes are chosen on
validation text (stories 301-884), and claimed on test text (1-300). Correctness is checked first: a checkpoint written
and read back gives the logits of the model that wrote it. CPU seconds are of the quantize call alone, one thread.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from accuracy_peers import TOOLS, Row, baseline, best, run_peer
from torch import Tensor, nn

import octavo

PARTS = {"test": (0, 300), "validation": (300, 884)}
STATIC_RANGES = {"int8": 127.0, "fp8": 448.0, "nvfp4": 2688.0}
DIALECTS = ("unified_hf", "compressed_tensors")
RECIPES = Path(__file__).with_name("accuracy_recipes.yaml")


class Bench:
    """One base model with its texts and judges."""

    def __init__(self, folder: Path, texts: Path, harness: Path, stories: int | None) -> None:
        sys.path.insert(0, str(harness))
        import common
        import evaluate

        self.folder, self.common, self.evaluate, self.stories = folder, common, evaluate, stories
        self.tokenizer = common.tokenizer(str(folder))
        self.texts = texts
        self._judges: dict[str, Any] = {}

    @cached_property
    def base(self) -> nn.Module:
        """The model, fp32, not quantized."""
        return self.common.load_model(str(self.folder))  # type: ignore[no-any-return]

    def calibration(self, seed: int) -> list[Tensor]:
        """128 windows of 256 tokens, 8 to a batch."""
        ids = self.common.calib_ids(self.tokenizer, self.texts / "train_sample.txt", seed)
        return list(ids.split(8))

    def judge(self, part: str) -> Any:
        """The judge of a part of the stories, which has run the base model."""
        if part not in self._judges:
            first, last = PARTS[part]
            lines = (self.texts / "val.jsonl").read_text(encoding="utf-8").splitlines()[first:last]
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "stories.jsonl"
                file.write_text("\n".join(lines), encoding="utf-8")
                rows = self.common.eval_rows(self.tokenizer, file, self.stories or len(lines))
            self._judges[part] = self.evaluate.Judge(str(self.folder), rows)
        return self._judges[part]

    def by_reference(self, model: nn.Module, act: str, part: str) -> dict[str, Any]:
        """Judge a quantized model's weights and static scales by the harness's own number formats."""
        import reference_quant

        plain = reference_quant.apply(
            self.common.load_model(str(self.folder)), plain_tensors(model, act), act
        )
        return self.judge(part)(plain)  # type: ignore[no-any-return]


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(1)
    table = yaml.safe_load(RECIPES.read_text(encoding="utf-8"))
    formats = [name for name in table if matches(name, options.formats)]
    texts, shared = options.data / "text-tinystories", options.data.parent
    harness = shared / "tools" / "accuracy"
    rows: list[Row] = []
    for name in options.models.split(","):
        bench = Bench(options.data / name, texts, harness, options.stories)
        for format_name in formats:
            for row in octavo_rows(bench, format_name, table[format_name], options):
                rows.append(row)
                print(line(row), file=sys.stderr, flush=True)
        known = baseline(shared / "specs" / "accuracy-baselines.md", name)
        for tool, python in (peer.split("=", 1) for peer in options.peer):
            globs = options.rows or best_rows(tool, formats, known)
            if globs:
                options.peer_rows.mkdir(parents=True, exist_ok=True)
                rows += run_peer(
                    tool, python, harness, bench.folder, texts, globs, options.seeds, options.peer_rows
                )
        measured = {row.format for row in rows if row.tool != "octavo" and row.kl and row.model == name}
        rows += [known[format_name] for format_name in formats if format_name not in measured]
    print(json.dumps([row.json() for row in rows], indent=2) if options.json else markdown(rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the models and text-tinystories"
    )
    parser.add_argument("--models", default="babyllama105-hf,stories260k-hf")
    parser.add_argument("--formats", default="*", help="globs, separated by commas")
    parser.add_argument("--recipes", help="globs; without: the first of each format")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--parts", default="test,validation")
    parser.add_argument("--stories", type=int, help="judge by so many of each part only, for a quick look")
    parser.add_argument("--peer", action="append", default=[], metavar="TOOL=PYTHON", help=", ".join(TOOLS))
    parser.add_argument("--rows", help="peers' rows, globs of format:algorithm; without: the baseline's best")
    parser.add_argument(
        "--peer-rows",
        type=Path,
        default=Path(tempfile.gettempdir()) / "octavo-accuracy-peers",
        help="folder for the peers' rows: finished ones are not run again",
    )
    parser.add_argument("--cross-check", action="store_true", help="judge by the reference formats, too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wrong = [peer for peer in options.peer if peer.split("=", 1)[0] not in TOOLS or "=" not in peer]
    if wrong:
        parser.error(f"--peer {wrong[0]}: expected TOOL=PYTHON with a tool of {', '.join(TOOLS)}")
    return options


def matches(name: str, globs: str) -> bool:
    return any(fnmatch.fnmatch(name, glob) for glob in globs.split(","))


def best_rows(tool: str, formats: Sequence[str], known: dict[str, Row]) -> str:
    """Return the rows in which `tool` is the best peer of the baseline file."""
    return ",".join(f"{name}:{known[name].recipe}" for name in formats if known[name].tool == tool)


def config_of(entry: dict[str, Any], algorithm: Any) -> dict[str, Any]:
    """Return a config of every linear layer but the head."""
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    rules.append({"quantizer_name": "*weight_quantizer", "cfg": entry["weights"]})
    if "inputs" in entry:
        rules.append({"quantizer_name": "*input_quantizer", "cfg": entry["inputs"]})
    rules.append({"quantizer_name": "*lm_head*", "enable": False})
    rules.append({"quantizer_name": "*", "parent_class": "nn.Embedding", "enable": False})
    return {"quant_cfg": rules, "algorithm": algorithm}


def octavo_rows(
    bench: Bench, format_name: str, entry: dict[str, Any], options: argparse.Namespace
) -> Iterator[Row]:
    """Yield a row for each chosen recipe of a format and each part of the text."""
    names = [name for name in entry["recipes"] if options.recipes and matches(name, options.recipes)]
    for recipe in names or [] if options.recipes else list(entry["recipes"])[:1]:
        config = config_of(entry, entry["recipes"][recipe])
        found: dict[str, list[dict[str, Any]]] = {part: [] for part in options.parts.split(",")}
        seconds, note = [], ""
        for seed in map(int, options.seeds.split(",")):
            torch.manual_seed(seed)
            try:
                model, spent = quantized(bench, config, seed)
            except (octavo.ConfigError, octavo.UnsupportedError) as error:
                note = f"not available: {error}"
                break
            note = note or stored(model, bench, seed)
            seconds.append(spent)
            for part, values in found.items():
                values.append(bench.judge(part)(model))
            if options.cross_check:
                part = next(iter(found))
                other = bench.by_reference(model, entry.get("act", "none"), part)
                note += f"; by reference KL {other['kl']:.4f} ({other['kl'] - found[part][-1]['kl']:+.5f})"
        for part, values in found.items():
            columns = {key: [value[key] for value in values] for key in ("ppl", "kl", "agree")}
            yield Row(
                bench.folder.name, format_name, "octavo", recipe, part,
                cpu_s=seconds, source="same run", note=note, **columns,
            )  # fmt: skip


def quantized(bench: Bench, config: dict[str, Any], seed: int) -> tuple[nn.Module, float]:
    """Return a quantized copy and the CPU seconds that it took."""
    model, batches = copy.deepcopy(bench.base), bench.calibration(seed)
    start = time.process_time()
    octavo.quantize(model, config, batches, quiet=True)
    return model, time.process_time() - start


def stored(model: nn.Module, bench: Bench, seed: int) -> str:
    """Export in the first dialect that has the format, read back, and say what was checked; exit when logits differ."""
    ids = bench.calibration(seed)[0][:2]
    with tempfile.TemporaryDirectory() as temporary:
        try:
            dialect = exported(model, Path(temporary) / "out")
        except octavo.OctavoError as error:
            return f"no checkpoint: {str(error).splitlines()[0][:90]}"
        with octavo.finalized(model, dialect), torch.no_grad():
            expected = model(ids).logits
        with torch.no_grad():
            found = octavo.load_quantized(Path(temporary) / "out")(ids).logits
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        largest = float((found - expected).abs().max())
        sys.exit(f"{bench.folder.name}: the checkpoint read back gives logits that differ by {largest:.3g}")
    return f"read back equal from {dialect}"


def exported(model: nn.Module, folder: Path) -> str:
    """Export in the first dialect that has a place for the model's formats, and return its name.

    Raises OctavoError, the first dialect's, where none has.
    """
    refusals = []
    for dialect in DIALECTS:
        try:
            octavo.plugins().exporter(dialect).export(model, folder, quiet=True)
        except octavo.OctavoError as error:
            refusals.append(error)
            continue
        return dialect
    raise refusals[0]


@torch.no_grad()
def plain_tensors(model: nn.Module, act: str) -> dict[str, Tensor]:
    """Return dequantized parameters and static input scales, as the harness takes them."""
    tensors = {name: value for name, value in model.named_parameters() if not name.startswith("lm_head")}
    for name, layer in model.named_modules():
        if not isinstance(layer, octavo.QuantModule) or "lm_head" in name:
            continue
        weights, inputs = layer.quantizers()["weight_quantizer"], layer.quantizers()["input_quantizer"]
        tensors[f"{name}.weight"] = weights(layer.weight)
        stage: Any = inputs.stages()[0]
        if act in STATIC_RANGES:
            amax = stage.named_state()["global_amax" if act == "nvfp4" else "amax"]
            tensors[f"{name}.input_scale"] = amax.reshape(()) / STATIC_RANGES[act]
        if stage.pre_quant_scale is not None:
            tensors[f"{name}.pre_quant_scale"] = stage.pre_quant_scale
    return tensors


def mean(values: Sequence[float], digits: int) -> str:
    """Return the mean and, of several seeds, half their range."""
    if not values:
        return "-"
    spread = f" ±{(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def line(row: Row) -> str:
    cells = [row.model, row.format, row.tool, row.recipe, row.part, mean(row.kl, 4), mean(row.ppl, 3)]
    cells += [mean(row.agree, 3), mean(row.cpu_s, 1), str(len(row.kl) or "-"), row.source, row.note]
    return "| " + " | ".join(cells) + " |"


def markdown(rows: Sequence[Row]) -> str:
    """Return one table: for each model, format and part the best row of every tool first, by KL."""
    heads = "model format tool recipe text KL ppl top-1|CPU s|seeds|source|note".replace(" ", "|", 7)
    lines = [f"| {' | '.join(heads.split('|'))} |", "|" + "---|" * len(heads.split("|"))]
    keys = dict.fromkeys((row.model, row.format, row.part) for row in rows)
    for key in sorted(keys, key=lambda k: (k[0], list(keys).index(k))):
        group = [row for row in rows if (row.model, row.format, row.part) == key]
        winner = best(group)
        group.sort(key=lambda row: statistics.mean(row.kl) if row.kl else float("inf"))
        lines += [
            line(row).replace(row.tool, f"**{row.tool}**", 1) if row is winner else line(row) for row in group
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
