"""Training runs on a Ray cluster, with their folders in storage that all machines reach."""
