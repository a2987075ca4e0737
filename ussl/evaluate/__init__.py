"""What a pre-trained encoder is worth: its features, and what can be read from them."""
