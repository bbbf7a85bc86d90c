"""How many labels each strategy needs, and how long a person waits for the next text."""
