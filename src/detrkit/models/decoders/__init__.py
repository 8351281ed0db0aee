"""Decoders: object queries and memory -> query states after every layer."""
