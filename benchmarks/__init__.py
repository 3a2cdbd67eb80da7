"""Measurements with printed tables, one file a claim: ``python -m benchmarks.bench_step``."""
