"""Private helpers: files, locks, provenance marks, signals, text."""
