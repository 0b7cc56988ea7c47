"""What is done to rows that are there: verified, rated by difficulty, rid of duplicates and of benchmark data."""
