"""The plugins that ship with Octavo, by module; each is loaded on first use."""

BUILTIN_PLUGINS = (
    "octavo.adapters.huggingface.plugin",
    "octavo.adapters.megatron_core.plugin",
    "octavo.exporters.unified_hf.plugin",
    "octavo.exporters.compressed_tensors.plugin",
    "octavo.exporters.tensorrt_llm.plugin",
    "octavo.exporters.foreign.plugin",
    "octavo.kernels.cpu.plugin",
    "octavo.kernels.triton.plugin",
)
