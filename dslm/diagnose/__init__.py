"""Why an attempt failed."""
