"""Adapters: changes of a model's weights that were trained apart from it, merged when it is loaded."""
