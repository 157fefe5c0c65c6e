"""What TensorRT-LLM's engine builder needs of a checkpoint, held against its files."""
