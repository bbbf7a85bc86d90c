"""Heads on a GPU: where one trains, and its features there."""
