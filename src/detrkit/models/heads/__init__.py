"""Prediction heads: classes, boxes, masks."""
