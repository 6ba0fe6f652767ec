"""Triton kernels of bptt. None yet: the backend reports itself as absent."""
