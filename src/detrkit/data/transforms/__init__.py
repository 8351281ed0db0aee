"""Image and annotation transforms."""
