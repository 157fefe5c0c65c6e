"""The unified Hugging Face checkpoint, in the dialect of ModelOpt, which vLLM, SGLang and TensorRT-LLM read."""
