"""The plugins that ship with Octavo: declared by the package, and there without entry points."""

from __future__ import annotations

from importlib import import_module

import pytest

from octavo._builtin_plugins import BUILTIN_PLUGINS
from octavo.core.plugins import plugins
from octavo.core.plugins.builtin import builtin_plugins
from octavo.core.plugins.hookspecs import PluginInfo
from octavo.core.plugins.loading import load_plugins


def test_the_package_declares_them() -> None:
    assert builtin_plugins() == BUILTIN_PLUGINS
    assert BUILTIN_PLUGINS == (
        "octavo.adapters.huggingface.plugin",
        "octavo.adapters.deepspeed_zero.plugin",
        "octavo.adapters.megatron_core.plugin",
        "octavo.exporters.unified_hf.plugin",
        "octavo.exporters.compressed_tensors.plugin",
        "octavo.exporters.tensorrt_llm.plugin",
        "octavo.exporters.foreign.plugin",
        "octavo.kernels.cpu.plugin",
        "octavo.kernels.triton.plugin",
    )


def test_all_are_loaded_and_describe_themselves() -> None:
    found = [status for status in plugins().statuses if status.origin == "built-in"]

    assert [(status.name, status.error) for status in found] == [
        ("huggingface", None),
        ("deepspeed_zero", None),
        ("megatron_core", None),
        ("unified_hf", None),
        ("compressed_tensors", None),
        ("tensorrt_llm", None),
        ("foreign", None),
        ("cpu", None),
        ("triton", None),
    ]
    assert [status.info for status in found] == [
        PluginInfo("huggingface", "Hugging Face transformers models, data and files", ("transformers",)),
        PluginInfo("deepspeed_zero", "DeepSpeed's ZeRO-3: weights divided among ranks", ("deepspeed",)),
        PluginInfo("megatron_core", "Megatron-core models, whose layers are shared by ranks", ("megatron",)),
        PluginInfo("unified_hf", "Unified Hugging Face checkpoints in ModelOpt's dialect", ()),
        PluginInfo(
            "compressed_tensors", "compressed-tensors checkpoints: INT, FP8, NVFP4 and MX formats", ()
        ),
        PluginInfo("tensorrt_llm", "TensorRT-LLM checkpoints, divided over ranks", ()),
        PluginInfo("foreign", "Reads checkpoints of AutoAWQ and GPTQ", ()),
        PluginInfo("cpu", "Compiled kernels for the CPU", ()),
        PluginInfo("triton", "Kernels for NVIDIA devices, in Triton", ("triton",)),
    ]


def test_they_are_loaded_once() -> None:
    assert plugins() is plugins()


@pytest.mark.parametrize("module", BUILTIN_PLUGINS)
def test_every_hook_of_theirs_is_one_of_ours(module: str) -> None:
    manager, _ = load_plugins()
    plugin = import_module(module)
    own = {name for name in vars(plugin) if manager.parse_hookimpl_opts(plugin, name) is not None}

    assert {caller.name for caller in manager.get_hookcallers(plugin) or ()} == own != set()
    assert all(getattr(manager.hook, name).has_spec() for name in own)
