"""Start, watch, stop, restart: the command, the supervisor, the diagnosis of failures."""
