"""Measurements with printed tables, one file a claim: ``python -m benchmarks.bench_step``."""

from hra_diffusion.threads import limit_spinning

limit_spinning()  # before any module imports torch
