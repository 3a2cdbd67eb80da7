"""The web page: layout and wiring. What it shows is read from disk, what it does is done by the packages below."""
