"""Solvers of A x = b."""
