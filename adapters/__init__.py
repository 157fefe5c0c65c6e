"""One folder per framework: how it is patched, described, loaded and saved."""
