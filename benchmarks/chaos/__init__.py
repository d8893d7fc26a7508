"""Faults and what they cost: nodes that fail while streams run through them."""
