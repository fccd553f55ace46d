"""How ranks share one model and one batch: groups of ranks, attention within documents, experts."""
