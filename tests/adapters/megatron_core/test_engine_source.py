"""What quantized classes for Transformer Engine's layers take from Megatron-core's source, which cannot run here."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from octavo.adapters.megatron_core.plugin import quantized_classes

_KEY = "megatron.core.extensions.transformer_engine:"


def classes() -> dict[str, ast.ClassDef]:
    """Return the classes of the module by name, without importing Megatron-core."""
    root = find_spec("megatron").submodule_search_locations[0]
    tree = ast.parse((Path(root) / "core/extensions/transformer_engine.py").read_text())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def attributes(node: ast.ClassDef) -> set[str]:
    """Return what the class sets on `self`, and the keywords that it hands on."""
    names = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    return names | {
        keyword.arg
        for n in ast.walk(node)
        if isinstance(n, ast.Call)
        for keyword in n.keywords
        if keyword.arg
    }


def test_registered_classes_are_in_the_source() -> None:
    found = classes()
    names = [key.removeprefix(_KEY) for key in quantized_classes() if key.startswith(_KEY)]
    assert names == ["TEColumnParallelLinear", "TELayerNormColumnParallelLinear", "TERowParallelLinear"]
    for name in names:
        assert name in found
    for name in ("TEColumnParallelLinear", "TERowParallelLinear"):
        assert [base.id for base in found[name].bases] == ["TELinear"]
        assert not any(
            isinstance(part, ast.FunctionDef) and part.name == "forward" for part in found[name].body
        )


def test_settings_that_are_read_are_set_by_the_source() -> None:
    found = classes()
    common = {
        "te_return_bias",
        "_tp_group",
        "parallel_mode",
        "tp_size",
        "sequence_parallel",
        "in_features",
        "out_features",
    }
    assert common <= attributes(found["TELinear"])
    norm = {"te_return_bias", "zero_centered_gamma", "eps", "parallel_mode", "sequence_parallel", "tp_size"}
    assert norm <= attributes(found["TELayerNormColumnParallelLinear"])
