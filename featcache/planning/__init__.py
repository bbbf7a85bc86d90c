"""What an extraction will take."""
