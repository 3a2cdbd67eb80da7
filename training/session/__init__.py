"""The state of a training run, and how it is set up: model, optimiser, caches, devices, timing."""
