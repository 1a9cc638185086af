"""Runs side by side on one page: tables with the spread over seeds, curves, and images of the same inputs."""
