"""The object that the plugin names: what it lacks, what it leaves to the reference, and no cost while unused."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from octavo.core.formats import PerBlock, PerToken, QuantSpec, chain_key
from octavo.core.ops import kernels
from octavo.kernels.triton.kernels import OPERATORS, TRITON


def test_the_plugin_brings_them_for_cuda() -> None:
    assert TRITON in kernels.candidates("cuda")
    assert TRITON not in kernels.candidates("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the package triton")
def test_without_a_device_they_are_missing_one() -> None:
    assert TRITON.missing() == "no CUDA device"


def test_without_triton_they_are_missing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert TRITON.missing() == "the package triton is not installed"


@pytest.mark.parametrize(
    ("capabilities", "missing"),
    [
        ([(9, 0)], None),
        ([(8, 0), (10, 0)], None),
        ([(9, 0), (7, 5)], "compute capability 7.5; 8.0 or newer is needed"),
    ],
)
def test_the_oldest_device_counts(
    monkeypatch: pytest.MonkeyPatch, capabilities: list[tuple[int, int]], missing: str | None
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    assert TRITON.missing() == missing


# What products decline is in test_product_formats.py.
@pytest.mark.parametrize("operator", [name for name in OPERATORS if not name.startswith("packed_")])
def test_formats_that_they_decline(operator: str) -> None:
    token = QuantSpec("e4m3", PerToken(), dynamic=True)
    assert TRITON.declines(operator, token.key) is None
    assert TRITON.declines(operator, token.stacked().key) is None
    deep = QuantSpec("int8", PerBlock(((-1, 4), (-3, 2))))
    assert "dim -3" in str(TRITON.declines(operator, chain_key([token, deep])))
    large = QuantSpec("int8", PerBlock(((-1, 200), (-2, 128))))
    assert "blocks of 32768 elements" in str(TRITON.declines(operator, large.stacked().key))


def test_operators_without_a_kernel() -> None:
    assert TRITON.declines("fake_quantized_linear", chain_key([])) == "no kernel for this operator"


def test_triton_is_not_imported_before_a_kernel_runs() -> None:
    code = (
        "import sys, torch, octavo\n"
        "from octavo.core import ops\n"
        "from octavo.core.formats import QuantSpec\n"
        "ops.amax(torch.ones(4), QuantSpec('int8'))\n"
        "import octavo.kernels.triton.kernels\n"
        "print('triton' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
