"""Vectors that a server makes: `/v1/embeddings`, as OpenAI and servers like it answer."""
