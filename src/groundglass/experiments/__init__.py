"""The paper's experiments: planned, run, compared and drawn."""
