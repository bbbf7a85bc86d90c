"""Vectors on disk that can be trusted."""
