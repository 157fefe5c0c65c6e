"""Training of quantized models."""
