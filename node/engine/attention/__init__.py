"""Attention over the blocks of the KV cache, one interface and a backend for each device."""
