"""Metrics, intervals and judging of trained networks."""
