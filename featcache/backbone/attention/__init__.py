"""Attention within each text of a packed batch, for frozen blocks and for trained ones."""
