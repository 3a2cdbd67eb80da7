"""Runs on disk: folder, events, checkpoints, queue."""
