"""Checkpoints of tools that Octavo reads and does not write: AutoAWQ's and GPTQ's."""
