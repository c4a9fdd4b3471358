"""Products with curvature matrices."""
