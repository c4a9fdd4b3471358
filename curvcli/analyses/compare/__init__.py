"""`curv compare`."""
