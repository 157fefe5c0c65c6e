"""Loading plugins: the built-in ones first, then entry points; a broken one is listed and harms nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import pluggy

from octavo.core.calibration.algorithms import ALGORITHMS
from octavo.core.console import say
from octavo.core.errors import FOREIGN_FAILURES, PluginError, listed, nearest
from octavo.core.modules import register, unregister
from octavo.core.plugins import hookspecs
from octavo.core.plugins.builtin import builtin_plugins
from octavo.core.plugins.hookspecs import PluginInfo

ENTRY_POINT_GROUP = "octavo"

# What a stranger's module may raise while it is imported or registered; interrupts and exits pass.
_FAILURES = (*FOREIGN_FAILURES, pluggy.PluginValidationError)


@dataclass(frozen=True)
class PluginStatus:
    """One plugin as `octavo plugins` lists it.

    Attributes:
        name: Its entry point's name, which the environment switches use.
        origin: `built-in`, or the distribution it comes from.
        info: What it says of itself, or None when it is broken.
        error: Why it is not loaded, or None.
    """

    name: str
    origin: str
    info: PluginInfo | None
    error: str | None = None


def load_plugins() -> tuple[pluggy.PluginManager, list[PluginStatus]]:
    """Load all plugins that the environment allows, and register the layer classes they bring.

    `OCTAVO_PLUGINS=a,b` loads only these entry points, `OCTAVO_PLUGINS_OFF=a,b` all but these (built-in ones
    included), `OCTAVO_TRACE_HOOKS=1` prints every hook call to stderr.
    """
    manager = pluggy.PluginManager("octavo")
    manager.add_hookspecs(hookspecs)
    if os.environ.get("OCTAVO_TRACE_HOOKS") == "1":
        manager.trace.root.setwriter(sys.stderr.write)
        manager.enable_tracing()
    off = _names("OCTAVO_PLUGINS_OFF")
    statuses = []
    for module in builtin_plugins():
        name = module.split(".")[-2]  # octavo.adapters.<name>.plugin
        if name in off:
            statuses.append(PluginStatus(name, "built-in", None, "switched off by OCTAVO_PLUGINS_OFF"))
        else:
            statuses.append(PluginStatus(name, "built-in", _adopt(manager, name, import_module(module))))
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        statuses.append(_load_entry_point(manager, entry))
    _warn_of_unknown_names([status.name for status in statuses])
    return manager, statuses


def _load_entry_point(manager: pluggy.PluginManager, entry: EntryPoint) -> PluginStatus:
    name, origin = entry.name, entry.dist.name if entry.dist is not None else "entry point"
    if "OCTAVO_PLUGINS" in os.environ and name not in _names("OCTAVO_PLUGINS"):
        return PluginStatus(name, origin, None, "left out by OCTAVO_PLUGINS")
    if name in _names("OCTAVO_PLUGINS_OFF"):
        return PluginStatus(name, origin, None, "switched off by OCTAVO_PLUGINS_OFF")
    try:
        return PluginStatus(name, origin, _adopt(manager, name, entry.load()))
    except _FAILURES as error:
        return PluginStatus(name, origin, None, f"{type(error).__name__}: {error}")


def _adopt(manager: pluggy.PluginManager, name: str, plugin: object) -> PluginInfo:
    """Register one plugin and the layer classes it brings; all of it or nothing."""
    registered: list[str] = []
    manager.register(plugin, name)
    try:
        manager.check_pending()
        others = [other for other in manager.get_plugins() if other is not plugin]
        for classes in manager.subset_hook_caller("quantized_classes", others)():
            for original, quantized in classes.items():
                register(original, quantized)
                registered.append(original)
        _check_new("an exporter", manager.hook.exporters(), ())
        _check_new("a verifier", manager.hook.verifiers(), ())
        _check_new("an algorithm", manager.hook.calibration_algorithms(), ALGORITHMS)
        infos = manager.subset_hook_caller("plugin_info", others)()
        return _checked_info(infos[0]) if infos else PluginInfo(name, "(says nothing of itself)")
    except _FAILURES:
        manager.unregister(plugin)
        for original in registered:
            unregister(original)
        raise


def _check_new(what: str, answers: Sequence[Mapping[str, str]], own: Iterable[str]) -> None:
    brought = [*own, *(name for answer in answers for name, _ in answer.items())]
    taken = sorted({name for name in brought if brought.count(name) > 1})
    if taken:
        raise PluginError(f"another plugin has {what} of this name already: {listed(taken)}")


def _checked_info(info: object) -> PluginInfo:
    if not isinstance(info, PluginInfo):
        raise PluginError(f"its hook plugin_info must return a PluginInfo, found {type(info).__name__}")
    return info


def _warn_of_unknown_names(known: Sequence[str]) -> None:
    for variable in ("OCTAVO_PLUGINS", "OCTAVO_PLUGINS_OFF"):
        for name in sorted(_names(variable) - set(known)):
            hint = nearest(name, known)
            say(f"warning: {variable} names {name!r}, and no plugin is called so.{hint}", quiet=False)


def _names(variable: str) -> set[str]:
    return {name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()}
