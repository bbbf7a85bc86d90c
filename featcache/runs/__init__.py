"""Train on train, choose on validation, report on test."""
