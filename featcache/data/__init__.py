"""A source of texts and labels becomes a split."""
