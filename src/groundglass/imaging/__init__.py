"""Slices in: read, window, frame, synthesise. No torch."""
