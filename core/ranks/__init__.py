"""Models whose parameters or data are divided among the processes (ranks) of `torch.distributed`."""
