"""Shared by the analyses."""
