"""Decisions on scores: calibration, ensembles, open sets, model selection."""
