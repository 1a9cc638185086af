"""The report of one run: ``python report.py run=RUN``."""
