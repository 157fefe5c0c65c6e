"""Compiles the CPU kernels when Octavo is installed or its wheel is built; without a compiler there are none in it."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from sysconfig import get_platform
from types import SimpleNamespace
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path(__file__).resolve().parent / "kernels" / "cpu"


class KernelsBuildHook(BuildHookInterface):
    """Puts the library beside the package's Python files; the wheel is then one for this platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, if there is a compiler; a failure is shown and is no failure of the install."""
        if self.target_name != "wheel":
            return
        builder = _builder()
        compiler = builder.find_compiler()
        try:
            if compiler is not None and builder.fresh(FOLDER) is None:
                builder.build(FOLDER, compiler)
        except (builder.BuildError, OSError) as error:
            self.app.display_warning(f"CPU kernels were not compiled: {error}")
        if builder.fresh(FOLDER) is not None and version == "standard":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform_tag()}"

    def clean(self, versions: list[str]) -> None:
        """Remove what was compiled."""
        builder = _builder()
        for name in (builder.LIBRARY, builder.DIGEST):
            (FOLDER / name).unlink(missing_ok=True)


def _builder() -> SimpleNamespace:
    """Return the names of `kernels/cpu/build.py`, which needs nothing of the package around it."""
    return SimpleNamespace(**run_path(str(FOLDER / "build.py")))


def _platform_tag() -> str:
    """Return the tag of this platform: of Python, the library needs ctypes alone."""
    return get_platform().replace("-", "_").replace(".", "_")
