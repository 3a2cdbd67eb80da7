"""The state of a training run: model, optimiser, caches, devices and timing, and how it is set up."""
