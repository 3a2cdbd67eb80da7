"""The adapter methods, the layers they adapt, and their file format."""
