"""Training of residuals and of the rivals' weights; class images."""
