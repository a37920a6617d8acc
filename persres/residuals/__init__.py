"""What is learned: low-rank residuals, and their file."""
