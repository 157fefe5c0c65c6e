"""Pure functions that solve one weight's quantization from statistics of its input."""
