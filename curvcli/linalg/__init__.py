"""Vectors and symmetric linear operators: knows nothing of networks."""
