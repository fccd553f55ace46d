"""Other machines, reached by commands: asked, checked, given files."""
