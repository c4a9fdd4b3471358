"""A problem seen as a matrix: `build(problem, matrix)` gives the linear operator."""

from curvcli.curvature.matrices import MATRICES, curves_the_loss, dimension
from curvcli.curvature.operators import build, build_for

__all__ = ["MATRICES", "build", "build_for", "curves_the_loss", "dimension"]
