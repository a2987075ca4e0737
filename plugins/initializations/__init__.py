"""Checkpoint formats an encoder can start from."""
