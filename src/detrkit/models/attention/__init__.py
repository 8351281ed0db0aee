"""Attention layers, and recording of what they attend to."""
