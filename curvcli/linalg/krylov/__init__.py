"""Lanczos, Krylov spaces and what is read off them."""
