"""From a file or a table in memory to a verdict, in one call."""
