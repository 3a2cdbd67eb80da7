"""The settings of a training run by topic: one file each, whose fields make the CLI flags and the web form."""
