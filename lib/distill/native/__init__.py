"""Kernels in C for decoding on a CPU."""
