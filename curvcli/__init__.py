"""curv: loss curvature of trained JAX networks, with an honest uncertainty on every number."""

__version__ = "0.1.0"
