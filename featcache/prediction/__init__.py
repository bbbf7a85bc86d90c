"""Backbone and head put together again."""
