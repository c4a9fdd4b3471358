"""Reading of examples from files and the user's functions."""
