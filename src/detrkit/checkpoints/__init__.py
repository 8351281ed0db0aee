"""Reading and writing weights: our own file, the published names, Hugging Face's names."""
