"""Scores of a set of detections, and the report."""
