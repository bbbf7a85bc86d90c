"""Extraction and prediction on a Ray cluster."""
