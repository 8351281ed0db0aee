"""A run as a typed config, put together here: the one place where strings become classes."""
