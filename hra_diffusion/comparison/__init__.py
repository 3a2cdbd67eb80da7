"""Comparisons of adapters and the base model from the same noise: run, statistics, grid, report, votes."""
