"""Rows become a cache: one sealed file, or shards with a manifest."""
