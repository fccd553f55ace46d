"""What each rank executes; it reads resolved files from the run directory and knows no planning."""
