"""From a photo to detections: the `Detector`."""
