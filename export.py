"""Export a run's network: ``python export.py run=DIR``, the same as ``triptych export ...``."""

from launch.commands.export import start

if __name__ == "__main__":
    start()
