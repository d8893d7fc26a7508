"""Keys and values in blocks: who holds which, what is shared, and the tensors they lie in."""
