"""From data sources to the batches of one rank."""
