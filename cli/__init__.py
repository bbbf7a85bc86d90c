"""The command line of featcache: the only part that knows the terminal."""
