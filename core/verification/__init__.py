"""What a serving engine's reader would find wrong in the files of a quantized checkpoint, without that engine."""
