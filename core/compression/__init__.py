"""Weights held as codes and scales: `compress` and `decompress`."""
