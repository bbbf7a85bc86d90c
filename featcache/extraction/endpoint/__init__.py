"""Extraction by an endpoint: its commit units, its canary, and what it will cost."""
