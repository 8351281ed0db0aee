"""From files to batches of padded photos with targets."""
