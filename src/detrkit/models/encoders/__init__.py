"""Encoders: feature maps -> feature maps, the memory of the decoder."""
