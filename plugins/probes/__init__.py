"""Measurements of the encoder while it trains."""
