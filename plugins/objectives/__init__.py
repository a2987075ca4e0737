"""Losses, with their decoders and predictors."""
