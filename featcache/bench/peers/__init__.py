"""Other tools, asked in processes of their own, which may have other versions of torch and transformers."""
