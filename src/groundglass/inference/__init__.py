"""Classify slices with a trained bundle: ONNX Runtime, calibration, refusal. No torch."""
