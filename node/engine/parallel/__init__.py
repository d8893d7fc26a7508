"""One stage over several ranks: how tensors are cut, and how sums are taken."""
