"""Evaluation of trained networks: measures, intervals, paired tests, reports."""
