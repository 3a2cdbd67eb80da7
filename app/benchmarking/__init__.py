"""Shared by ``hra-diffusion bench`` and benchmarks/: workloads, timing, and a table with the machine."""
