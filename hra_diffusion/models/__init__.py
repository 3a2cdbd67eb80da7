"""Base models: loading, families, single-file checkpoints, the meta device, noise processes and prompts."""
