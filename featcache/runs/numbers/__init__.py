"""Runs of heads that predict numbers: scores, intervals, predictions, comparisons."""
