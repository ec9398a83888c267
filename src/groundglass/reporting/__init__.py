"""Figures, overlays and HTML reports."""
