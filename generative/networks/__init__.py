"""Networks: of flows and diffusions ``network(x_BCHW, times_BT, condition) -> tuple``; autoencoders and their bottlenecks."""

from generative.networks.autoencoder import Autoencoder
from generative.networks.bottlenecks import GaussianBottleneck
from generative.networks.context_unet import ContextUNet
from generative.networks.contract import ImageNetwork
from generative.networks.dit import DiT
from generative.networks.exact import ExactNetwork
from generative.networks.patch_discriminator import PatchDiscriminator
from generative.networks.quantizers import FSQ, SimVQ, VectorQuantizer
from generative.networks.restorers import RRDB, DnCNN, DRUNet
from generative.networks.swinir import SwinIR
from generative.networks.token_transformer import TokenTransformer
from generative.networks.unet import UNet

__all__ = [
    "FSQ",
    "RRDB",
    "Autoencoder",
    "ContextUNet",
    "DRUNet",
    "DiT",
    "DnCNN",
    "ExactNetwork",
    "GaussianBottleneck",
    "ImageNetwork",
    "PatchDiscriminator",
    "SimVQ",
    "SwinIR",
    "TokenTransformer",
    "UNet",
    "VectorQuantizer",
]
