"""Keys and values in pages: who holds which, what is shared, and the tensors they lie in."""
