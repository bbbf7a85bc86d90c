"""Vectors that were made elsewhere become sealed files of the cache."""
