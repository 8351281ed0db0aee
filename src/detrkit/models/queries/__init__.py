"""Object queries: learned, points, anchors, two-stage."""
