"""Images of several adapters from the same initial noise: comparison, votes, plots, report."""
