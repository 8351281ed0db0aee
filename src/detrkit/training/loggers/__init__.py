"""Training loggers."""
