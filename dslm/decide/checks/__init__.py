"""What is refused before anything starts: one list of checks as data, for every verb."""
