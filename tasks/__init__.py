"""Prefect tasks: a few lines each around the library's stages."""
