"""Heads that predict numbers: their scale, their intervals, their solvers."""
