"""What models and datasets of a hub have in common: deadlines, troubles in words, progress."""
