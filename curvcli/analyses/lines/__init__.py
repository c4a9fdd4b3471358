"""`curv direction` and `curv landscape`."""
