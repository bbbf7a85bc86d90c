"""Adapters on disk: their settings and their files, without torch."""
