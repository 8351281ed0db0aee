"""Dataset checks: annotations, images, panoptic segments."""
