"""Image generation: requests, settings, schedulers, batches, previews, and PNG files."""
