"""DeepSpeed's ZeRO: parameters that it divides among ranks."""
