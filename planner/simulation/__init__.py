"""Requests played through a plan: throughput, latency, and attainment of deadlines."""
