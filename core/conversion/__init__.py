"""A quantized checkpoint in another dialect, without its model."""
