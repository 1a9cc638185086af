"""A page on this machine to try trained models on: ``python demo.py``, with small trained models of its own."""

from pathlib import Path

# Exports that come with the package; the card of each says how it was trained.
SHIPPED = tuple(sorted(path.parent for path in (Path(__file__).parent / "models").glob("*/model.safetensors")))
