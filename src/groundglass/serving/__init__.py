"""Findings for other machines: the client that answers a DICOM archive."""
