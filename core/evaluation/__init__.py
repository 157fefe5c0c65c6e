"""Measuring what quantization costs: perplexity, KL divergence, top-1 agreement, and models read back."""
