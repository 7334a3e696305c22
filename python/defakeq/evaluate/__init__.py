"""Evaluating detectors on data sets: scores, metrics, and reports."""
