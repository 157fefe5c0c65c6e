"""The command line: `octavo quantize`, `calibrate`, `plan`, `inspect`, `eval`, `presets`, `plugins`."""
