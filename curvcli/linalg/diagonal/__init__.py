"""Estimators of the diagonal."""
