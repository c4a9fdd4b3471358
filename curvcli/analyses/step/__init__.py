"""`curv step`."""
