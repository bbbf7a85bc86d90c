"""How good a head is, and how certain that is."""
