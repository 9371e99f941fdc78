"""Hardware-aware compression of PyTorch networks."""
