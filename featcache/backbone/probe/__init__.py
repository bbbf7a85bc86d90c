"""What is found out about a model when it is loaded, by running a few short texts."""
