"""Estimators of the trace."""
