"""The run directory: what was asked, what happened."""
