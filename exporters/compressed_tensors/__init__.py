"""compressed-tensors checkpoints, as vLLM, SGLang and transformers read INT, FP8, NVFP4 and MX formats."""
