"""The networks, through transformers and diffusers: features, queries and keys out."""
