"""Use a trained run on your own images: ``python generate.py run=DIR``, the same as ``triptych generate ...``."""

from launch.commands.generate import start

if __name__ == "__main__":
    start()
