"""Schemas of settings and reports as pydantic models, which do not import the engine."""
