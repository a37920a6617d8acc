"""Study: several concepts in one image."""
