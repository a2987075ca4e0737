"""Ways to turn a batch of pictures into views."""
