"""Models that do not fit in memory: quantized block by block, from checkpoint to checkpoint, and resumed."""
