"""The commands, their options and defaults: changing one is a decision."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from helpers.cli_runner import Run
from octavo.cli.app import app, exit_code
from octavo.core import errors

CONFIG = {"--preset": None, "--kv": None, "--recipe": None, "--block-size": None}
SURFACE: dict[str, dict[str, Any]] = {
    "quantize": {
        "MODEL": "required",
        "--out": "required",
        **CONFIG,
        "--target": None,
        "--tp": 1,
        "--dialect": "huggingface",
        "--pp": 1,
        "--calib-data": None,
        "--stats": None,
        "--stats-budget": None,
        "--skip-bad-batches": False,
        "--calib-size": 512,
        "--seq-len": 512,
        "--batch-size": 8,
        "--seed": 0,
        "--dtype": None,
        "--stream": False,
        "--resume": False,
        "--activation-budget": "4GB",
        "--log-json": None,
        "--overwrite": False,
        "--trust-remote-code": False,
        "--quiet": False,
        "--json": False,
    },
    "calibrate": {
        "MODEL": "required",
        "--out": "required",
        "--calib-data": "required",
        "--no-gram": False,
        "--held-tokens": 256,
        "--outputs": False,
        "--all-experts": False,
        "--stats-budget": None,
        "--skip-bad-batches": False,
        "--calib-size": 512,
        "--seq-len": 512,
        "--batch-size": 8,
        "--seed": 0,
        "--dtype": None,
        "--overwrite": False,
        "--trust-remote-code": False,
        "--quiet": False,
        "--json": False,
    },
    "convert": {
        "SOURCE": "required",
        "OUT": "required",
        "--to": None,
        "--target": None,
        "--tp": 1,
        "--pp": 1,
        "--ep": 1,
        "--config": None,
        "--lossy": False,
        "--overwrite": False,
        "--quiet": False,
        "--json": False,
    },
    "plan": {
        "MODEL": "required",
        **CONFIG,
        "--target": None,
        "--tp": 1,
        "--stats-budget": None,
        "--dtype": None,
        "--trust-remote-code": False,
        "--json": False,
    },
    "inspect": {"DIRECTORY": "required", "--verify": False, "--json": False},
    "verify": {
        "DIRECTORY": "required",
        "--consumer": "required",
        "--trust-remote-code": False,
        "--json": False,
    },
    "eval": {
        "DIRECTORY": "required",
        "--text": "required",
        "--base": None,
        "--num-samples": 512,
        "--seq-len": 512,
        "--batch-size": 8,
        "--seed": 0,
        "--trust-remote-code": False,
        "--json": False,
    },
    "report": {"DIRECTORY": "required", "--worst": 10, "--json": False},
    "reshard": {
        "DIRECTORY": "required",
        "--out": "required",
        "--tp": 1,
        "--pp": 1,
        "--ep": 1,
        "--overwrite": False,
        "--json": False,
    },
    "presets": {"--json": False},
    "plugins": {"--json": False},
    "kernels": {"--preset": None, "--json": False},
}
EXIT_CODES = {
    errors.OctavoError: 3,
    errors.ConfigError: 3,
    errors.UnsupportedError: 3,
    errors.PlanError: 3,
    errors.ShapeError: 3,
    errors.ModeError: 3,
    errors.PluginError: 3,
    errors.TrainingError: 3,
    errors.CalibrationError: 4,
    errors.CheckpointError: 5,
    errors.ExportError: 5,
}


def test_commands_options_and_defaults() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    found = {
        name: {
            _spelled(p): "required" if p.required else p.default for p in command.params if p.name != "help"
        }
        for name, command in commands.items()
    }
    assert found == SURFACE


def _spelled(parameter: Any) -> str:
    """Return an option's name, or an argument's in capitals."""
    name: str = parameter.opts[0]
    return name if name.startswith("--") else name.upper()


def test_every_error_has_an_exit_code() -> None:
    known = {
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.OctavoError)
    }

    assert {cls: exit_code(cls("x")) for cls in known} == EXIT_CODES


def test_help_names_commands_and_exit_codes(octavo_command: Run) -> None:
    shown = octavo_command("--help")
    text = " ".join(shown.out.split())

    assert (shown.code, shown.err) == (0, "")
    assert all(f"│ {name} " in text for name in SURFACE)
    for code in (
        "0 done",
        "1 unexpected failure",
        "2 wrong command line",
        "3 refused before any work",
        "5 a checkpoint",
    ):
        assert code in text


@pytest.mark.parametrize("command", SURFACE)
def test_every_command_has_help(octavo_command: Run, command: str) -> None:
    shown = octavo_command(command, "--help")

    assert shown.code == 0
    assert all(option in shown.out for option in SURFACE[command] if option.startswith("--"))
