"""Framework-agnostic heart of Octavo: formats, ops, quantizers, calibration, modes and neutral model types."""
