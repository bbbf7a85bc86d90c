"""The demo's encoder and reviews, out of PyPI packages."""
