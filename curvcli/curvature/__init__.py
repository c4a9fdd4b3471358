"""A problem seen as a matrix: `build(problem, matrix)` gives the linear operator."""

from curvcli.curvature.matrices import MATRICES, build

__all__ = ["MATRICES", "build"]
