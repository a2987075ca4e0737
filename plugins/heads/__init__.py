"""Networks between an encoder and an objective, thrown away after training."""
