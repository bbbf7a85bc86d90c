"""A cache that lies in an object store."""
