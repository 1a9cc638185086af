"""Lay runs side by side on one page: ``python compare.py runs='outputs/**'``, the same as ``triptych compare ...``."""

from launch.commands.compare import start

if __name__ == "__main__":
    start()
