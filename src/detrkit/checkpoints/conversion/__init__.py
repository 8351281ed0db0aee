"""Checkpoint formats: one key mapping per architecture and format."""
