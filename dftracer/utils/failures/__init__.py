"""Exceptions: copies without what they hold, and texts of them."""
