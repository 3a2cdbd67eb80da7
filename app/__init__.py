"""The command line and the web page."""

from hra_diffusion.threads import limit_spinning

limit_spinning()  # before any module imports torch
