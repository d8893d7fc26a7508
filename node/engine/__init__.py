"""Arithmetic of one shard: it knows no peer and opens no socket of its own accord."""
