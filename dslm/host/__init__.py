"""This machine: its processes, its network, its kernel."""
