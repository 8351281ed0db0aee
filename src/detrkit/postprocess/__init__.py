"""Convert predictions into detections and segments of the original image."""
