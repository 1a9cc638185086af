"""Which precision ``trainer.precision=auto`` stands for, on this machine and for this network.

- A GPU that computes in bfloat16 itself: ``bf16-mixed``.
- A processor that does (AMX or AVX512_BF16), and a network of convolutions: ``bf16-mixed``; a step of the U-Net of 36 M weights
  took 0.54 s in place of 1.24 there.
- Anything else: ``32-true``. A small transformer gained nothing on such a processor, as less than half of its step are matrix
  products, and without these instructions bfloat16 is emulated.

Nothing is measured. A run records what was decided when it began, and continues with that on any machine.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from launch.named import named
from launch.run_folder import is_main_process

AUTO = "auto"
KEY = "trainer.precision"


def decided(config: DictConfig) -> tuple[str, str]:
    """Decide on a precision.

    Args:
        config: The config of a run.

    Returns:
        ``bf16-mixed`` or ``32-true``, and why.
    """
    accelerator = str(config.trainer.get("accelerator", AUTO))
    if accelerator in (AUTO, "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "the GPU computes in bfloat16"
        return "32-true", "the GPU does not compute in bfloat16"
    if accelerator not in (AUTO, "cpu"):
        return "32-true", "bfloat16 is tried on no such device"
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "32-true", "the processor does not compute in bfloat16"
    kind: Any = named(config.network._target_)
    if not getattr(kind, "convolutional", False):
        return "32-true", "on a processor a network without convolutions gains nothing from bfloat16"
    return "bf16-mixed", "the processor computes in bfloat16, and the network in convolutions"


def settle_precision(config: DictConfig) -> None:
    """Put what was decided in the place of ``auto``, and tell it; another precision stays.

    Args:
        config: The config of a run that begins or is looked at, changed in place.
    """
    if OmegaConf.select(config, KEY) == AUTO:
        precision, why = decided(config)
        OmegaConf.update(config, KEY, precision)
        _tell(f"{precision}: {why}")


def tell_kept_precision(config: DictConfig, overrides: list[str]) -> None:
    """Say where a run that continues keeps another precision than ``auto`` would stand for here.

    Args:
        config: Its config in force.
        overrides: Its recorded overrides.
    """
    kept, here = str(OmegaConf.select(config, KEY)), decided(config)
    if f"{KEY}={AUTO}" in overrides and kept != here[0]:
        _tell(f"{kept}, as when the run began; on this machine {here[0]}, as {here[1]}: {KEY}={here[0]} changes it")


def _tell(decision: str) -> None:
    if is_main_process():
        print(f"{KEY}={AUTO}: {decision}", flush=True)  # noqa: T201
