"""`curv saddle`."""
