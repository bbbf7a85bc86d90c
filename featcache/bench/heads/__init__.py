"""Heads beside the loop of the tutorials and scikit-learn, and on a GPU beside the CPU."""
