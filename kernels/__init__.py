"""Per-device implementations of the operators that `core.ops` declares; the reference runs where none does."""
