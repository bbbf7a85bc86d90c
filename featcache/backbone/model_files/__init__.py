"""A model's files: found, downloaded, hashed, checked before they are loaded."""
