"""Wrong command lines and inputs: the exit code of each, and one message on stderr."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.adapters_remote_code import write_model_with_code
from helpers.cli_runner import CALIBRATION, DATA, MODEL, TEXT, Run
from octavo.core.calibration.algorithms import ALGORITHMS

AVAILABLE = ", ".join(sorted(ALGORITHMS))

FP8 = ("--preset", "FP8_DEFAULT_CFG")
INT8 = ("--preset", "INT8_WEIGHT_ONLY_CFG")
OUT = ("--out", "OUT")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), ""),
        (("frobnicate",), "No such command 'frobnicate'"),
        (("quantize",), "Missing argument 'model'"),
        (("quantize", MODEL, *INT8), "Missing option '--out'"),
        (("quantize", MODEL, *INT8, *OUT, "--bits", "4"), "No such option: --bits"),
        (("quantize", MODEL, *INT8, *OUT, "--calib-size", "many"), "Invalid value for '--calib-size'"),
        (("eval", MODEL), "Missing option '--text'"),
        (("inspect",), "Missing argument 'directory'"),
    ],
)
def test_wrong_command_lines_exit_with_2(
    octavo_command: Run, arguments: tuple[object, ...], message: str
) -> None:
    done = octavo_command(*arguments)

    assert done.code == 2
    assert message.lower() in done.err.lower()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either --preset NAME or --recipe FILE"),
        ((*INT8, "--recipe", "r.yaml"), "give either --preset NAME or --recipe FILE"),
        (("--preset", "FP8_DEFAUL_CFG"), "unknown preset 'FP8_DEFAUL_CFG'; .*Did you mean 'FP8_DEFAULT_CFG'"),
        ((*FP8, "--kv", "FP8_KV"), "unknown preset 'FP8_KV'; .*Did you mean 'FP8_KV_CFG'"),
        (("--recipe", "gone.yaml"), "recipe .*gone.yaml does not exist"),
        (
            (*FP8, "--block-size", "32"),
            "block size 32 was asked for, and the config has no integer format with blocks",
        ),
        (
            ("--preset", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "--block-size", "0"),
            "block size 0: must be at least 1",
        ),
        ((*FP8, "--dtype", "floot"), "unknown dtype 'floot'; known: float32, bfloat16, float16"),
        ((*FP8, "--calib-data", "gone.txt"), "gone.txt does not exist"),
    ],
)
def test_refused_before_any_work_exits_with_3(
    octavo_command: Run, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = octavo_command("quantize", MODEL, *options, "--out", tmp_path / "out")

    assert (done.code, done.out) == (3, "")
    assert re.search(f"^octavo: error: {message}", done.err, re.MULTILINE), done.err
    assert not (tmp_path / "out").exists()


def test_an_algorithm_that_is_not_there_is_neither_planned_nor_run(
    octavo_command: Run, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("include: [INT8_DEFAULT_CFG]\nalgorithm: lsq\n")
    options = ("--recipe", recipe)
    message = f"algorithm 'lsq' is not available in this version of Octavo; available: {AVAILABLE}"

    planned = octavo_command("plan", MODEL, *options)
    done = octavo_command("quantize", MODEL, *options, *DATA, "--out", tmp_path / "out")
    assert (planned.code, done.code) == (3, 3)
    assert f"error: {message}\n" in planned.out
    assert message in done.err


def test_calibration_without_data_exits_with_4(octavo_command: Run, tmp_path: Path) -> None:
    done = octavo_command("quantize", MODEL, *FP8, "--out", tmp_path / "out")

    assert (done.code, done.out) == (4, "")
    assert re.search("^octavo: error: 35 quantizers need calibration data", done.err, re.MULTILINE)


def test_a_folder_that_cannot_be_made_exits_with_5(octavo_command: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = octavo_command("quantize", MODEL, *INT8, "--out", tmp_path / "file" / "out")

    assert done.code == 5
    assert f"octavo: error: cannot create a folder in {tmp_path / 'file'}: " in done.err


@pytest.mark.parametrize("command", ["plan", "quantize", "eval"])
def test_a_folder_that_nobody_loads_exits_with_3(octavo_command: Run, command: str, tmp_path: Path) -> None:
    options = {"plan": FP8, "quantize": (*INT8, "--out", tmp_path / "out"), "eval": TEXT}[command]
    done = octavo_command(command, tmp_path, *options)

    assert done.code == 3
    assert (
        f"{tmp_path}; loaded: huggingface, deepspeed_zero, megatron_core, unified_hf, compressed_tensors, "
        "tensorrt_llm, foreign, cpu, triton. "
        "`octavo plugins` lists them all" in done.err
    )


def test_an_unexpected_failure_is_not_swallowed(octavo_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter then shows the traceback and exits with 1; the failure is made up, for none is known."""
    monkeypatch.setattr("octavo.cli.options.load_config", lambda name: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        octavo_command("plan", MODEL, *FP8)


def test_missing_calibration_data_is_called_by_its_option(octavo_command: Run, tmp_path: Path) -> None:
    assert "--calib-data" in octavo_command("quantize", MODEL, *FP8, "--out", tmp_path / "out").err


@pytest.mark.parametrize(
    ("option", "value"), [("--batch-size", 0), ("--calib-size", -1), ("--dtype", "int8")]
)
def test_values_that_make_no_sense_are_refused(
    octavo_command: Run, option: str, value: object, tmp_path: Path
) -> None:
    data = ("--calib-data", CALIBRATION)
    done = octavo_command("quantize", MODEL, *FP8, *data, option, value, "--out", tmp_path / "out")

    assert done.code in (2, 3)
    assert option.removeprefix("--") in done.err


def test_code_of_a_checkpoint_is_refused_in_one_line(octavo_command: Run, tmp_path: Path) -> None:
    model = write_model_with_code(tmp_path / "model")

    done = octavo_command("plan", model, *FP8)

    assert done.code == 3
    assert "--trust-remote-code" in done.err
