"""Texts become token ids: truncated, in windows, and with what the vocabulary does not have counted."""
