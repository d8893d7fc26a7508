"""Attention over the pages of the KV cache, one interface and a backend for each device."""
