"""Few labels: head recipes, and the one that cross-validation chooses."""
