"""Quantizing a model: attaching quantizers, calibrating them, and finalizing their scales for a dialect."""
