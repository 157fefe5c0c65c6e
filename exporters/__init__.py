"""One folder per checkpoint format: writing it and reading it back."""
