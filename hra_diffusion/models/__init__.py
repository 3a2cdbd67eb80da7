"""Loading a base model: families, single-file checkpoints, shapes without memory, noise process."""
