"""Training of the blocks above the cut."""
