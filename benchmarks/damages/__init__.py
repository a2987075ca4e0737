"""Kinds of damaged and odd files, each with what `ussl data index` is to make of it."""
