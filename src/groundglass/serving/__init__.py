"""Predictions for other machines: a service over HTTP, and the client that answers a DICOM archive."""
