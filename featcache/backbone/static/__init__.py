"""Static models: tables of token vectors, whose mean is the vector of a text."""
