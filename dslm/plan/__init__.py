"""Will it fit and how fast: model shape, memory, time, search over strategies."""
