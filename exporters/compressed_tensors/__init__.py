"""compressed-tensors checkpoints, as vLLM, SGLang and transformers read INT8, INT4, FP8 and MXFP4."""
