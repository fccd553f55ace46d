"""Look at a model: build it without memory, follow small passes of it, and say what it needs."""
