"""The set loss (paper, section 3.1): match predictions to objects, then compare the pairs."""
