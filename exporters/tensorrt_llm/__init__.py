"""TensorRT-LLM's checkpoint format: one folder with a file of tensors for each rank."""
