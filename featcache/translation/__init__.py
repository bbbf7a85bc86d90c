"""What featcache says to people, in English and in Chinese."""
