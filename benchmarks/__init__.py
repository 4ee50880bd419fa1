"""Measurements that the README quotes; each prints a table and writes JSON. Nothing here is part of the package."""
