"""How good pictures are, in numbers that are proxies and say so."""
