"""What models and datasets of a hub have in common: timeouts, errors as sentences, progress."""
