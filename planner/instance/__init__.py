"""Cluster files: devices, links, model and workload as a person writes them down."""
