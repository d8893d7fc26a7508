"""Swarm: one large language model, served by many unlike machines."""

__version__ = "0.1.0"
