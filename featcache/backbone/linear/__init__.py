"""Linear layers in 8-bit integers, which replace those of a frozen model."""
