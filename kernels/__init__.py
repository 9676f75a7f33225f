"""Triton sources, installed as ``nerve_fast.kernels``."""
