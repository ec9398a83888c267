"""Data sets, manifests and splits."""
