"""A new plan from an old one, when peers come and go: what moves, and what it costs."""
