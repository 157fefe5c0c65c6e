"""docs/consumers.md, made from the tables of evidence and from the runs of vLLM's loading code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from octavo.core.model.exporter import Verdict
from octavo.core.model.targets import TARGETS
from octavo.exporters.compressed_tensors.formats import Format, formats
from octavo.exporters.unified_hf.caches import CACHES
from octavo.exporters.unified_hf.schemes import Scheme, block_length, schemes
from octavo.exporters.unified_hf.targets import cache_name_verdict, scheme_shape_verdict, scheme_verdict

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "consumers.md"
RUNS = ROOT / "benchmarks" / "vllm_loads.json"
_ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM", "transformers": "transformers"}

_HEAD = """# Which reader loads what

Written by `benchmarks/consumers_table.py` from `exporters/unified_hf/targets.yaml`,
`exporters/compressed_tensors/formats.yaml` and `benchmarks/vllm_loads.json`; a test holds it to them. The readers are
those of vLLM 0.33.0, SGLang 0.5.23, TensorRT-LLM's PyTorch backend of November 2026, and transformers 5.23.0.

**ran**: the reader's own loading code took such files, or refused them. **read**: its source says so. **unknown**:
nobody looked, and nothing here relies on it. Kernels were not run: a checkpoint that loads has the right values in the
right places. "experts" is said where it differs from other layers.

Ask about your own files, with no reader installed:

```
octavo verify DIR --consumer vllm      # or sglang, trtllm, transformers; exits with 1 on errors
octavo quantize MODEL --preset INT8_DEFAULT_CFG --target vllm --calib-data text.txt --out DIR
```

`verify` names each tensor or field, what was found, what the reader needs and what to do. Its rules are tables beside
each dialect: `exporters/*/verification/*.yaml`.
"""
_RUNS = """
## Our exports in vLLM's own loading code

`VLLM_SRC=DIR python benchmarks/vllm_loads.py --vllm PYTHON --judge SCRIPT --write`: tiny models with the shapes of
Llama (dense), Qwen3 with a tied head (tied) and Qwen3-MoE (moe), exported with `target="vllm"`. "loads": every
tensor was taken and nothing left unset; the difference is the largest between the weights as vLLM holds them and the
values that the files stand for, relative. "not written": the export refused first. "converted" (`--converted`):
exported in ModelOpt's dialect without a target, then `octavo convert --to compressed_tensors --target vllm --lossy`.

On a host without AVX-512 the judge must be told that there is one (`torch.cpu._is_avx512_supported`) for a quantized
cache, since vLLM chooses a CPU kernel before it loads. Packed INT8 with a scale per channel in experts needs vLLM's
Marlin kernel, which the judge switches off with all kernels: `unknown`.

| model | config | written as | `octavo verify` | vLLM | difference |
|---|---|---|---|---|---|
"""


def consumer_page() -> str:
    """Return docs/consumers.md."""
    unified = [_unified_row(scheme) for scheme in _once(schemes(), lambda scheme: scheme.quant_algo)]
    packed = [_compressed_row(known) for known in formats()]
    caches = [
        [name, *(_cell(cache_name_verdict(target, name)) for target in TARGETS)] for name in sorted(CACHES)
    ]
    return (
        _HEAD
        + _section("ModelOpt's dialect (`unified_hf`)", "quant_algo", unified)
        + _section("compressed-tensors", "format: weights, inputs", packed)
        + _section("The KV cache in ModelOpt's dialect", "format", caches)
        + _RUNS
        + "".join(
            f"| {' | '.join(map(str, row.values()))} |\n"
            for row in json.loads(RUNS.read_text(encoding="utf-8"))
        )
    )


def _section(title: str, first: str, rows: Sequence[Sequence[str]]) -> str:
    head = [first, *(_ENGINES[target] for target in TARGETS)]
    lines = [head, ["---"] * len(head), *rows]
    return f"\n## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _unified_row(scheme: Scheme) -> list[str]:
    cells = []
    for target in TARGETS:
        plain = scheme_verdict(target, scheme.quant_algo, _length(scheme))
        experts = scheme_shape_verdict(target, scheme.quant_algo, (1, 128, 128), False)
        cells.append(
            _cell(plain) if experts.status == "loads" else f"{_cell(plain)}; experts: {_cell(experts)}"
        )
    return [f"`{scheme.quant_algo}`", *cells]


def _length(scheme: Scheme) -> int | None:
    length = block_length(scheme.weight)
    return 16 if length == 1 else length  # 1 stands for any


def _compressed_row(known: Format) -> list[str]:
    cells = []
    for target in TARGETS:
        cell = _cell(known.targets.get(target, Verdict("unknown", "")))
        experts = known.experts.get(target)
        cells.append(cell if experts is None else f"{cell}; experts: {_cell(experts)}")
    return [f"`{known.name}`: {', '.join(known.weights)}; {', '.join(known.inputs)}", *cells]


def _cell(verdict: Verdict) -> str:
    if verdict.status == "unknown":
        return "unknown"
    return f"{verdict.status} ({'ran' if verdict.evidence.startswith('tried') else 'read'})"


def _once(items: Iterable[Scheme], key: Callable[[Scheme], str]) -> list[Scheme]:
    return list({key(item): item for item in reversed(list(items))}.values())[::-1]
