"""What heads are trained on: where the inputs of each split come from."""
