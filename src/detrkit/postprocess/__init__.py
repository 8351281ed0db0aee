"""From the model's output to objects in the original photo."""
