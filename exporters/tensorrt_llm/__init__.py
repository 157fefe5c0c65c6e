"""TensorRT-LLM checkpoints: config.json and one file for each rank, as its engine builder reads them."""
