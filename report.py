"""Report one run on one page: ``python report.py run=RUN``, the same as ``triptych report ...``."""

from launch.commands.report import start

if __name__ == "__main__":
    start()
