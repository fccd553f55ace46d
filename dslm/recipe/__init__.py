"""What to train: the typed schema, loading, and the catalogue of presets."""
