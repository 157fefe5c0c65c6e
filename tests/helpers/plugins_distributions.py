"""Distributions on disk, as an installer leaves them: modules, METADATA and entry points in a folder of sys.path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from octavo.core.modules import registry
from octavo.core.plugins import Plugins
from octavo.core.plugins.loading import PluginStatus, load_plugins

HEADER = "from octavo import hookimpl\nfrom octavo.core.plugins.hookspecs import PluginInfo\n\n\n"
GOOD = {
    # Layers of a framework, the quantized class of one, and the plugin that brings both together.
    "good_layers": """
        import torch
        from torch import nn

        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
                self.gain = 2.0

            def forward(self, x):
                return nn.functional.linear(x, self.weight) * self.gain

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.left, self.right, self.out = Scaled(), Scaled(), nn.Linear(8, 8)

            def forward(self, x):
                return self.out(self.left(x) + self.right(x))
        """,
    "good_quantized": """
        import octavo
        from good_layers import Scaled
        from torch.nn.functional import linear

        class QuantScaled(octavo.QuantModule, Scaled):
            quantizer_names = ("input_quantizer", "weight_quantizer")

            @classmethod
            def quantizer_shape(cls, layer, quantizer):
                return tuple(layer.weight.shape) if quantizer == "weight_quantizer" else (0, layer.weight.shape[1])

            def quantized_weights(self):
                return {"weight_quantizer": self.weight}

            def forward(self, x):
                return linear(self.input_quantizer(x), self.weight_quantizer(self.weight)) * self.gain
        """,
    "good_exporter": """
        class Exporter:
            name = "good_format"

            def stores(self, layer):
                return False

            def serves(self, target, layer):
                from octavo.core.model.exporter import Verdict
                return Verdict("loads", "said by the plugin")

            def serves_shape(self, target, layer, shape, is_fused):
                return self.serves(target, layer)

        EXPORTER = Exporter()
        """,
    "good_plugin": """
        @hookimpl
        def plugin_info():
            return PluginInfo("good", "A plugin that works", ("good_framework",))

        @hookimpl
        def quantized_classes():
            return {"good_layers:Scaled": "good_quantized:QuantScaled"}

        @hookimpl
        def exporters():
            return {"good_format": "good_exporter:EXPORTER"}

        @hookimpl
        def tiny_inputs(model):
            import torch
            return {"x": torch.ones(1, 8)} if type(model).__module__ == "good_layers" else None
        """,
}


def distribution(folder: Path, name: str, modules: Mapping[str, str], **entry_points: str) -> Path:
    """Put a distribution into `folder`: modules named `*plugin` start with the imports of a plugin."""
    for module, source in modules.items():
        header = HEADER if module.endswith("plugin") else ""
        (folder / f"{module}.py").write_text(header + dedent(source))
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{entry} = {value}\n" for entry, value in entry_points.items())
    (info / "entry_points.txt").write_text(f"[octavo]\n{lines}")
    return folder


def good_distribution(folder: Path) -> Path:
    return distribution(folder, "good-distribution", GOOD, good="good_plugin")


def run_python(folder: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that finds the distributions of `folder`."""
    return _run(folder, [sys.executable, "-c", dedent(script)], environment)


def run_octavo(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that finds the distributions of `folder`."""
    return _run(folder, [sys.executable, "-m", "octavo", *arguments], environment)


@contextmanager
def loaded_here(folder: Path, **environment: str) -> Iterator[tuple[Plugins, dict[str, PluginStatus]]]:
    """Load plugins in this process, which finds the distributions of `folder` for as long."""
    before = set(registry._classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            manager, statuses = load_plugins()
            yield Plugins(manager, statuses), {status.name: status for status in statuses}
        finally:
            for key in set(registry._classes) - before:
                registry.unregister(key)
            for path in folder.glob("*.py"):
                sys.modules.pop(path.stem, None)


def plugin_rows(folder: Path, **environment: str) -> dict[str, dict[str, Any]]:
    """Return what `octavo plugins --json` lists, by name."""
    done = run_octavo(folder, "plugins", "--json", **environment)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def _run(
    folder: Path, command: list[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
    return subprocess.run(
        command,
        cwd=folder,
        env={
            **clean,
            "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "HF_HUB_OFFLINE": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
