"""Hugging Face checkpoints into Megatron-core's models, and back."""
