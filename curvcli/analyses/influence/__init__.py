"""`curv influence`."""
