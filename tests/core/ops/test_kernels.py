"""Which kernels run, on a machine where a plugin brought some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.plugins_distributions import distribution, run_octavo, run_python
from octavo.core.errors import ConfigError
from octavo.core.ops.kernels import selected, using

KERNELS = {
    "counted": """
        from octavo.core import formats
        from octavo.core.formats import parse_chain

        calls = []

        class Counted:
            device_type = "cpu"

            def __init__(self, name, missing):
                self.name, self._missing = name, missing

            def missing(self):
                return self._missing

            def operators(self):
                return {"amax": self.amax}

            def declines(self, operator, spec):
                return "only int8" if parse_chain(spec)[0].element != "int8" else None

            def amax(self, x, spec):
                if self.declines("amax", spec) is not None:
                    return NotImplemented
                calls.append(self.name)
                return formats.compute_amax(x, parse_chain(spec)[0])

        FIRST, SECOND = Counted("a_first", None), Counted("a_second", None)
        LACKING = Counted("a_lacking", "no such device")
        """,
    "counted_plugin": """
        @hookimpl
        def plugin_info():
            return PluginInfo("counted", "Kernels that count their calls")

        @hookimpl
        def kernels():
            return {"a_first": "counted:FIRST", "a_second": "counted:SECOND", "a_lacking": "counted:LACKING"}
        """,
}
SCRIPT = """
    import torch
    from octavo.core import ops
    from octavo.core.formats import QuantSpec
    import counted
    x = torch.tensor([1.0, -3.0])
    found = [ops.amax(x, QuantSpec(element)).item() for element in ("int8", "e4m3")]
    print(found, counted.calls)
    """


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return distribution(tmp_path, "counted-kernels", KERNELS, counted="counted_plugin")


@pytest.mark.parametrize(
    ("chosen", "calls"),
    [
        ({}, ["a_first"]),
        ({"OCTAVO_KERNELS": "a_second"}, ["a_second"]),
        ({"OCTAVO_KERNELS": "reference"}, []),
    ],
)
def test_the_first_one_that_may_runs(folder: Path, chosen: dict[str, str], calls: list[str]) -> None:
    done = run_python(folder, SCRIPT, **chosen)

    assert done.stdout.strip() == f"[3.0, 3.0] {calls}", done.stderr


def test_the_command_says_why_others_do_not_run(folder: Path) -> None:
    done = run_octavo(
        folder, "kernels", "--preset", "NVFP4_DEFAULT_CFG", "--json", OCTAVO_KERNELS="a_first,a_lacking"
    )

    row = next(row for row in json.loads(done.stdout) if (row["device"], row["operator"]) == ("cpu", "amax"))
    assert row["runs"] == "a_first"
    assert row["others"]["a_second"] == "OCTAVO_KERNELS=a_first,a_lacking"
    assert row["others"]["a_lacking"] == "no such device"
    assert row["left_to_reference"] == {"e2m1 block{-1:16} e4m3·global dynamic": "only int8"}


def test_an_unknown_name_is_refused(folder: Path) -> None:
    done = run_octavo(folder, "kernels", OCTAVO_KERNELS="a_frist")

    assert done.returncode == 3
    assert "no kernels 'a_frist' for OCTAVO_KERNELS; known: reference, a_first" in done.stderr
    assert "Did you mean 'a_first'?" in done.stderr


def test_inside_using_the_variable_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_KERNELS", " reference ,")
    assert selected() == ("reference",)
    with using("reference"):
        monkeypatch.setenv("OCTAVO_KERNELS", "nothing")
        assert selected() == ("reference",)
    with pytest.raises(ConfigError, match="no kernels 'nothing'"):
        torch.ops.octavo.amax(torch.ones(2), '[{"element":"int8"}]')
