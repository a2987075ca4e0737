"""Networks that are pre-trained and exported."""
