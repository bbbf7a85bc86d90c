"""A split and a backbone become a sealed file, once."""
