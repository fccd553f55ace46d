"""Will it fit and how fast: memory, time, search over strategies."""
