"""Built-in plugins: a folder a kind, a file an idea, registered by entry points as anyone's package is."""
