"""Hugging Face transformers: models, attention, data and checkpoint files."""
