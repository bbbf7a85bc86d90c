"""Which texts to label next, and what was answered."""
