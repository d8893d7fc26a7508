"""The searches that find plans: exact ones for small pools, local ones for large."""
