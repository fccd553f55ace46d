"""One module a launcher: LaunchSpec in, LaunchRequest out, pure."""
