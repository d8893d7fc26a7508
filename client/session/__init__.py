"""One request over one route: what is sent, what may come back, and what was said so far."""
