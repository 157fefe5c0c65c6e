"""Per-device implementations of the operators that `core.ops` declares; none ships yet, the reference runs."""
