"""Megatron-core: parallel layers, their statistics and checkpoints, and Hugging Face checkpoints in and out."""
