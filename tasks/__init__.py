"""Prefect tasks around the library's stages."""
