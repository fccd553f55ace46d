"""A whole run: its attempts from the first to the end."""
