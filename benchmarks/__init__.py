"""Benchmarks, one module for each claim: ``python -m benchmarks.bench_step``. Results go to docs/benchmarks.md."""

from hra_diffusion.threads import limit_spinning

limit_spinning()  # before any module imports torch
