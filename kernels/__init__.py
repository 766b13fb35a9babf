"""Triton kernels: one file per op. They import triton and torch only, and are imported at the first launch."""
