"""Recipes that ship with ussl."""
