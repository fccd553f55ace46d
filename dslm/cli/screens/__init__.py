"""What a verb draws: a value in, something for the terminal out. No verb, no option."""
