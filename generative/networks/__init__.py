"""Networks: ``network(x_BCHW, times_BT, condition) -> tuple`` with one (B, C, H, W) output per head."""

from generative.networks.dit import DiT

__all__ = ["DiT"]
