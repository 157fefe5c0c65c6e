"""What readers of this dialect need, held against a checkpoint's files."""
