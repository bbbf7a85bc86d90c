"""Files, locks, stores and the machine."""
