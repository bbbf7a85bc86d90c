"""Measurements beside the tools that users would take instead."""
