"""Evaluate a run again, or compare several: ``python evaluate.py run=DIR``, the same as ``triptych evaluate ...``."""

from launch.commands.evaluate import start

if __name__ == "__main__":
    start()
