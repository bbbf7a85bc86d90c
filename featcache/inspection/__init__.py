"""What cached features know about the data."""
