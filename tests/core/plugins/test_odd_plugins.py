"""Plugins that are broken in ways that loading does not foresee yet: each must be listed, and only it must suffer."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.plugins_distributions import distribution, loaded_here
from octavo.core.errors import PluginError
from octavo.core.plugins.hookspecs import PluginInfo
from octavo.core.plugins.loading import PluginStatus


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


def test_warnings_that_the_interpreter_makes_errors_of(tmp_path: Path) -> None:
    found = status(tmp_path, "raise DeprecationWarning('as -W error makes of it')")

    assert found.error == "DeprecationWarning: as -W error makes of it"


def test_an_exception_of_a_kind_that_nobody_knows_is_shown_whole(tmp_path: Path) -> None:
    """Its traceback names the plugin, and OCTAVO_PLUGINS_OFF leaves that out; nothing is swallowed unseen."""
    with pytest.raises(Exception, match="no driver") as caught:
        status(tmp_path, "class Unforeseen(Exception): pass\nraise Unforeseen('no driver')")

    assert type(caught.value).__name__ == "Unforeseen"


@pytest.mark.parametrize("source", ["raise RuntimeError('no')", "return 7"])
def test_a_hook_for_exporters_that_fails(source: str, tmp_path: Path) -> None:
    assert status(tmp_path, f"@hookimpl\ndef exporters(): {source}").error is not None


def test_an_exporter_that_cannot_be_imported(tmp_path: Path) -> None:
    source = "@hookimpl\ndef exporters(): return {'mine': 'no_such_module:MINE'}"
    distribution(tmp_path, "odd-distribution", {"odd_plugin": source}, odd="odd_plugin")

    message = r"exporter 'mine' cannot be loaded from no_such_module:MINE \(ModuleNotFoundError: .*OCTAVO_PLUGINS_OFF"
    with loaded_here(tmp_path) as (found, _), pytest.raises(PluginError, match=message):
        found.exporter("mine")


def test_a_verifier_that_cannot_be_imported(tmp_path: Path) -> None:
    source = "@hookimpl\ndef verifiers(): return {'mine': 'no_such_module:MINE'}"
    distribution(tmp_path, "odd-distribution", {"odd_plugin": source}, odd="odd_plugin")

    message = r"verifier 'mine' cannot be loaded from no_such_module:MINE \(ModuleNotFoundError: .*OCTAVO_PLUGINS_OFF"
    with loaded_here(tmp_path) as (found, _), pytest.raises(PluginError, match=message):
        found.verifiers()


def test_a_verifier_whose_name_is_taken(tmp_path: Path) -> None:
    found = status(tmp_path, "@hookimpl\ndef verifiers(): return {'unified_hf': 'odd_plugin:MINE'}")

    assert "another plugin has a verifier of this name already: unified_hf" in (found.error or "")


def test_an_exporter_whose_name_is_taken(tmp_path: Path) -> None:
    found = status(tmp_path, "@hookimpl\ndef exporters(): return {'unified_hf': 'odd_plugin:MINE'}")

    assert "unified_hf" in (found.error or "")


def test_an_info_that_is_no_plugin_info(tmp_path: Path) -> None:
    found = status(tmp_path, "@hookimpl\ndef plugin_info(): return {'name': 'odd', 'summary': 'a dict'}")

    assert "PluginInfo" in (found.error or "")


def test_a_plugin_is_called_what_the_environment_switches_call_it(tmp_path: Path) -> None:
    found = status(tmp_path, "@hookimpl\ndef plugin_info(): return PluginInfo('own', '')", "entry")

    assert found.name == "entry"
