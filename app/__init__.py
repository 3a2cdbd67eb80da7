"""The faces of the project: the command line, and what else a person meets."""
