"""Scores of images. They are proxies of what a person sees."""
