"""What the model saw and why it said so: attention, matching, shapes, and the page that shows them."""
