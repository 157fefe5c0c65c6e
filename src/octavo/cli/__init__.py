"""The command line: `octavo quantize`, `plan`, `inspect`, `eval`, `presets`, `plugins`."""
