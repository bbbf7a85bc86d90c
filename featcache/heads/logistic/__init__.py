"""Logistic regression solved exactly: its objective, the solver, and the choice of its penalty."""
