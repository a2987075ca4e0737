"""The formulas of the papers as plain loops in float64, with which the parts are compared."""
