"""Compiled kernels for CPUs, and the products of matrices that they stand between."""
