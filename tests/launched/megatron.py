"""Sections of `megatron_*.py`, in one run: each is a module whose `results` are reported under its name.

Nothing else is imported here: Megatron-core's checkpoints start processes, which import this file.
"""

from __future__ import annotations

if __name__ == "__main__":
    from importlib import import_module

    from helpers import megatron_cpu
    from launched.common import ARGUMENTS, joined, report

    with joined():
        megatron_cpu.on_cpu()
        report(**{name: import_module(f"launched.megatron_{name}").results() for name in ARGUMENTS})
