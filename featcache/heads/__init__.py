"""Vectors become classes."""
