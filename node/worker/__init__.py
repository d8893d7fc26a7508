"""The process that computes: orders in, steps out, and its half of a group of ranks."""
