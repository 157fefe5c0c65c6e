"""The examples run as they are, the demo in a process of its own; its claims hold."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Runner:
    """Runs an example as a script in this process, which has imported torch and transformers already."""

    def __init__(self, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> None:
        self.patch, self.captured = patch, captured

    def __call__(self, script: str, *arguments: str) -> str:
        """Return what it prints."""
        self.patch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(ROOT / script), run_name="__main__")
        return self.captured.readouterr().out


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(monkeypatch, capsys)


def test_demo_reads_back_what_it_simulated_and_keeps_eight_bits_close() -> None:
    command = [sys.executable, "examples/demo.py", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["format"].split()[0]: row for row in json.loads(done.stdout)}

    assert rows.keys() == {"FP8", "INT8", "INT4", "NVFP4", "MXFP8", "MXFP4"}
    for row in rows.values():
        assert row["read_back_equal"]
        assert abs(row["perplexity"] / row["perplexity_fake"] - 1) <= 1e-6
    for name in ("FP8", "INT8", "MXFP8"):
        assert rows[name]["perplexity"] <= 1.03 * rows[name]["perplexity_base"]
    for name in ("INT4", "NVFP4", "MXFP4"):
        assert rows[name]["perplexity"] > rows[name]["perplexity_base"], "four bits cost something"


def test_the_demo_texts_are_small() -> None:
    texts = (ROOT / "examples" / "data").glob("*.jsonl")
    assert 0 < sum(path.stat().st_size for path in texts) <= 60_000


def test_quantize_and_export(run: Runner) -> None:
    assert "tensors" in run("examples/quantize_and_export.py")


def test_hf_ptq(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--qformat", "int8", "--calib_size", "8", "--batch_size", "4", "--export_path", str(out)]

    assert "tensors" in run("examples/hf_ptq.py", *flags)

    scheme = json.loads((out / "hf_quant_config.json").read_text(encoding="utf-8"))["quantization"]
    assert scheme["kv_cache_quant_algo"] == "FP8"


def test_hf_ptq_says_why_it_refuses(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--qformat", "int4", "--inference_tensor_parallel", "3", "--export_path", str(out)]
    with pytest.raises(
        SystemExit,
        match=r"(?s)^hf_ptq\.py: .*last dim 64 is not divisible by the block of 128"
        r".*8 attention heads cannot be split over tp=3",
    ):
        run("examples/hf_ptq.py", *flags)
    assert not out.exists()


def test_hf_ptq_refuses_flags_by_name(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        run("examples/hf_ptq.py", "--awq_block_size", "64")

    assert capsys.readouterr().err.endswith("hf_ptq.py: error: --awq_block_size: not available: AWQ\n")


def test_moe(run: Runner) -> None:
    lines = run("examples/moe.py").splitlines()

    assert "model.layers.0.mlp.experts: tokens per expert" in lines[0]
    assert lines[-1].endswith("read back equal: True")


def test_bert(run: Runner) -> None:
    rows = {row["format"]: row for row in json.loads(run("examples/bert.py", "--json", "--steps", "40"))}

    assert rows.keys() == {"INT8", "FP8"}
    for row in rows.values():
        assert row["read_back_equal"]
        assert row["accuracy_base"] >= 0.55, "it has learned something in 40 steps, where 0.5 is guessing"
        assert row["changed"] <= 0.05 * row["pairs"], "eight bits change few answers"


def test_accuracy_table_shows_that_searching_scales_helps(run: Runner) -> None:
    rows = json.loads(run("examples/accuracy_table.py", "--json"))
    kl = {(row["format"].split(",")[0], row["algorithm"]): row["kl"] for row in rows}

    assert len(kl) == len(rows) == 5
    assert kl["INT8", "max"] < kl["INT4", "mse"] < kl["INT4", "max"]
    assert kl["NVFP4", "mse"] < kl["NVFP4", "max"]
    assert all(row["perplexity"] > row["perplexity_base"] for row in rows)


def test_calibrate_once_runs_no_data_for_any_format(run: Runner) -> None:
    first, _, _, *rows = run("examples/calibrate_once.py").splitlines()

    tokens = int(first.removeprefix("statistics: ").split()[0])
    probed = [int(row.split("|")[2]) for row in rows]
    assert len(rows) == 5
    assert max(probed) <= 16 < tokens / 100, "a probe of a few tokens, not the data"


def test_export_all_dialects(run: Runner) -> None:
    rows = {
        (row["format"], row["dialect"]): row
        for row in json.loads(run("examples/export_all_dialects.py", "--json"))
    }

    formats, dialects = ("fp8", "int4_awq"), ("unified_hf", "compressed_tensors", "tensorrt_llm", "converted")
    assert rows.keys() == {(name, dialect) for name in formats for dialect in dialects}
    found = {key: (row["errors"], row["warnings"]) for key, row in rows.items()}
    assert found.pop(("fp8", "unified_hf")) == (0, 10), "q/k/v and gate/up of 5 layers have unequal scales"
    assert found.pop(("int4_awq", "unified_hf")) == (1, 0), "vLLM refuses INT4 in this dialect"
    assert set(found.values()) == {(0, 0)}
    for name in formats:
        perplexity = [rows[name, dialect]["perplexity"] for dialect in dialects]
        assert max(perplexity) <= 1.005 * min(perplexity)
    assert rows["int4_awq", "converted"]["perplexity"] == rows["int4_awq", "unified_hf"]["perplexity"]
    assert rows["int4_awq", "converted"]["codes_changed"] == 0
    assert 0.2 < rows["fp8", "converted"]["codes_changed"] < 0.4, "k, v and up got the scale of q and gate"


def test_reshard_trtllm(run: Runner) -> None:
    four, back = run("examples/reshard_trtllm.py").splitlines()[-2:]

    assert four.startswith("4 ranks: 412 tensors")
    assert back == "put together again: the same bytes"


def test_qat_trainer_recovers_and_exports_what_it_trained(run: Runner) -> None:
    found = json.loads(run("examples/qat_trainer.py", "--json", "--steps", "12").splitlines()[-1])

    lost = found["rounded, not trained"] - found["original"]
    assert found["trained with rounding"] < found["rounded, not trained"] - 0.2 * lost
    assert found["the exported checkpoint"] == pytest.approx(found["trained with rounding"], rel=1e-6)


def test_qat_trainer_resumes_to_the_same_bytes(run: Runner, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ["--steps", "4", "--json", "--out"]
    run("examples/qat_trainer.py", *flags, str(whole))
    run("examples/qat_trainer.py", *flags, str(parts), "--stop-at", "2")
    run("examples/qat_trainer.py", *flags, str(parts), "--resume")

    weights = "exported/model.safetensors"
    assert (parts / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(("name", "dialect"), [("int4", 1e-3), ("nvfp4", 1e-2)])
def test_qlora_exports_what_it_merged_and_on_weights_what_it_trained(
    run: Runner, name: str, dialect: float
) -> None:
    # `dialect`: rounding for a checkpoint; layers that engines join get one second-level scale in NVFP4
    flags = ["--json", "--steps", "6", "--format", name]
    found = json.loads(run("examples/qlora.py", *flags).splitlines()[-1])

    assert found["original"] < found["rounded, not trained"]
    for place in ("beside", "inside"):
        assert found[f"{place}: exported"] == pytest.approx(found[f"{place}: merged"], rel=1e-6)
        assert found[f"{place}: trained"] < 1.02 * found["rounded, not trained"]
    assert found["inside: merged"] == pytest.approx(found["inside: trained"], rel=dialect)


def test_qad_trainer_comes_closer_to_the_original_and_exports_what_it_trained(run: Runner) -> None:
    flags = ["--json", "--steps", "20", "--written", "32"]
    found = json.loads(run("examples/qad_trainer.py", *flags).splitlines()[-1])

    rounded, distilled, exported = (
        found[name] for name in ("rounded", "distilled", "the exported checkpoint")
    )
    assert distilled["kl"] < 0.95 * rounded["kl"], "in 20 steps"
    assert rounded["reference_perplexity"] < distilled["perplexity"] < rounded["perplexity"]
    assert exported == pytest.approx(distilled, rel=1e-5)
