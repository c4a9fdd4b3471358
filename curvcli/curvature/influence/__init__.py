"""Queries, and their responses to changes of the data."""
