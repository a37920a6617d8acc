"""Prefect flows: chains of the tasks."""
