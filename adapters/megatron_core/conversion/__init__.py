"""Hugging Face checkpoints into Megatron-core's models, and back."""

from octavo.adapters.megatron_core.conversion.exporting import export_huggingface
from octavo.adapters.megatron_core.conversion.importing import import_huggingface, load_huggingface

__all__ = ["export_huggingface", "import_huggingface", "load_huggingface"]
