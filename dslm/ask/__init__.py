"""Work that needs torch, asked of a worker in a process of its own."""
