"""How much memory a run takes, and how to fit it into a limit."""
