"""Networks: ``network(x_BCHW, times_BT, condition) -> tuple`` with one (B, C, H, W) output per head."""

from generative.networks.dit import DiT
from generative.networks.unet import UNet
from generative.networks.unet_first import FirstUNet

__all__ = ["DiT", "FirstUNet", "UNet"]
