"""Per-device implementations of the operators that `core.ops` declares."""
