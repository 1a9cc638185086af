"""A trained run in use: restore, draw, export, load."""
