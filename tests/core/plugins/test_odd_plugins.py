"""Plugins that are broken in ways that loading does not foresee yet: each must be listed, and only it must suffer."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.plugins_distributions import distribution, loaded_here
from octavo.core.plugins import PluginInfo, PluginStatus


def status(folder: Path, source: str, entry: str = "odd") -> PluginStatus:
    """Load the built-in plugins and one more; return what is listed of it."""
    distribution(folder, "odd-distribution", {"odd_plugin": source}, **{entry: "odd_plugin"})
    with loaded_here(folder) as (_, statuses):
        assert statuses["unified_hf"].error is None
        (found,) = (status for status in statuses.values() if status.origin == "odd-distribution")
        return found


def test_a_plugin_that_says_nothing_of_itself(tmp_path: Path) -> None:
    assert status(tmp_path, "") == PluginStatus(
        "odd", "odd-distribution", PluginInfo("odd", "(says nothing of itself)")
    )


def test_interrupts_and_exits_pass(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="stop"):
        status(tmp_path, "raise SystemExit('stop')")


@pytest.mark.xfail(strict=True, reason="kinds of exception that the list does not foresee end every command")
@pytest.mark.parametrize(
    "source",
    [
        "class Unforeseen(Exception): pass\nraise Unforeseen('no driver')",
        "raise DeprecationWarning('as -W error makes of it')",
        "@hookimpl\ndef quantized_classes(): raise StopAsyncIteration('no driver')",
    ],
    ids=["own", "warning", "iteration"],
)
def test_any_exception(source: str, tmp_path: Path) -> None:
    assert status(tmp_path, source).error is not None


@pytest.mark.xfail(strict=True, reason="exporters are asked for after loading, where nothing is caught")
@pytest.mark.parametrize("source", ["raise RuntimeError('no')", "return 7"])
def test_a_hook_for_exporters_that_fails(source: str, tmp_path: Path) -> None:
    assert status(tmp_path, f"@hookimpl\ndef exporters(): {source}").error is not None


@pytest.mark.xfail(strict=True, reason="whichever comes last wins, and nobody is told")
def test_an_exporter_whose_name_is_taken(tmp_path: Path) -> None:
    found = status(tmp_path, "@hookimpl\ndef exporters(): return {'unified_hf': 'odd_plugin:MINE'}")

    assert "unified_hf" in (found.error or "")


@pytest.mark.xfail(strict=True, reason="any answer is taken for a PluginInfo; `octavo plugins` then crashes")
def test_an_info_that_is_none(tmp_path: Path) -> None:
    found = status(tmp_path, "@hookimpl\ndef plugin_info(): return {'name': 'odd', 'summary': 'a dict'}")

    assert "PluginInfo" in (found.error or "")


@pytest.mark.xfail(strict=True, reason="the name is always the entry point's")
def test_a_plugin_goes_by_its_own_name(tmp_path: Path) -> None:
    """As PluginStatus says: `Its own name, or its entry point's where it could not say`."""
    assert (
        status(tmp_path, "@hookimpl\ndef plugin_info(): return PluginInfo('own', '')", "entry").name == "own"
    )
