"""What ``conf/`` once said, and what it says now: recorded configs and overrides of older code stay readable."""

from __future__ import annotations

import re
from typing import Any

FORMER = {  # values that conf/ once had, and what it has instead
    "${oc.env:TRIPTYCH_CACHE,null}": None,  # nothing else of the environment is read
    "callbacks.DecodingGrid": "callbacks.StepsGrid",
    "callbacks.DenoisingGrid": "callbacks.StepsGrid",
    "datamodules.digits.DigitsDataModule": "datamodules.embedded.digits.DigitsDataModule",
    "datamodules.mnist.TorchvisionDataModule": "datamodules.torchvision_sets.TorchvisionDataModule",
    "datamodules.scenes.ScenesDataModule": "datamodules.embedded.scenes.ScenesDataModule",
    "lightning_modules.MeanFlowRestorer": "lightning_modules.MeanFlow",
    "generative.networks.FirstUNet": "generative.networks.ContextUNet",
    "generative.networks.label_classifier.LabelClassifier": "generative.judges.label_classifier.LabelClassifier",
    "generative.networks.perceptual.PerceptualLoss": "generative.judges.perceptual.PerceptualLoss",
    "generative.schedules.TimeLaw": "generative.schedules.TimeDistribution",
}
FORMER_KEYS = {  # also below other keys: in a resolved config the module has its objective in itself
    "callbacks.decoding_grid": "callbacks.steps_grid",
    "callbacks.denoising_grid": "callbacks.steps_grid",
    "objective.time_law": "objective.time_distribution",
}
FORMER_ARGUMENTS = {  # of a class, by its former or present name
    ("lightning_modules.DDPM", "conditional"): "labels",
    ("lightning_modules.MaskGIT", "conditional"): "labels",
    ("lightning_modules.MeanFlowRestorer", "conditional"): "sees_degraded",
}
LATER_ARGUMENTS = {  # beside an argument, one that came later, and the value that does as was done without it
    ("datamodules.", "horizontal_flip"): ("quarter_turns", False),
}
FORMER_OPTIONS = {  # options of groups
    "callbacks=default": "callbacks=restore",
    "callbacks=diffusion": "callbacks=generate",
    "callbacks=inpainting": "callbacks=inpaint",
    "callbacks=decoding_grid": "callbacks=steps_grid",
    "callbacks=denoising_grid": "callbacks=steps_grid",
    "experiment=ddpm_iclevr_first": "experiment=ddpm_iclevr_context_unet",
    "network=unet_first": "network=unet_context",
    "network=unet_first_added": "network=unet_context_added",
    "network=unet_first_deep": "network=unet_context_deep",
    "network=unet_first_no_labels": "network=unet_context_no_labels",
    "network=unet_first_no_time": "network=unet_context_no_time",
    "objective=masked_tokens_first": "objective=masked_tokens_uniform",
}


def renewed(node: Any, below: object = "") -> Any:
    """Return a copy of a config in which what ``conf/`` once said is what it says now.

    Args:
        node: Plain containers.
        below: Last part of the node's key; empty for the whole config.
    """
    if isinstance(node, dict):
        target = str(node.get("_target_"))
        now = {
            name: FORMER_ARGUMENTS.get((target, name))
            or FORMER_KEYS.get(f"{below}.{name}", "").rpartition(".")[2]
            or name
            for name in node
        }
        later = {
            key: value
            for (owner, name), (key, value) in LATER_ARGUMENTS.items()
            if name in node and target.startswith(owner)
        }
        return later | {now[name]: renewed(value, name) for name, value in node.items()}
    if isinstance(node, list):
        return [renewed(value) for value in node]
    return FORMER.get(node, node) if isinstance(node, str) else node


def renewed_override(line: str) -> str:
    """Write a recorded override as it is written now.

    Args:
        line: The override.

    Returns:
        The override, its key or option renamed where that was.
    """
    for former, key in FORMER_KEYS.items():
        line = re.sub(rf"^(\+*|~){re.escape(former)}(?=[.=]|$)", rf"\g<1>{key}", line)
    for former, now in FORMER_OPTIONS.items():
        group, _, option = former.partition("=")
        if line.startswith(f"{group}="):  # one option, or several in brackets
            line = re.sub(rf"(?<=[=\[,\s]){option}(?=[\],\s]|$)", now.partition("=")[2], line)
    return line
