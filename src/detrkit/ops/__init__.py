"""Pure functions on tensors: boxes, masks, padding."""
