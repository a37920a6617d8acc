"""Input from outside: names, digests, text to print, files and documents, checked before anything uses them."""
