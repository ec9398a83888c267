"""Classify slices with many processes, on one machine or on a cluster, through Ray Data."""
