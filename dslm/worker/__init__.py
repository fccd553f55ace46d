"""The program of each rank: it reads resolved files from the run directory and knows no plans."""
