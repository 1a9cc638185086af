"""Optimiser and learning rate as the config says, also where a checkpoint was trained with others.

PyTorch's own ``load_state_dict`` restores settings along with the state: a resumed run would continue with the settings of its
first start, whatever its config says by now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class ComposedSchedule(LambdaLR):
    """The learning rate is a function of the optimiser step alone; of a checkpoint it takes the step and nothing else.

    Args:
        optimizer: The optimiser; its settings now are those that hold after it has loaded a checkpoint.
        factor: Optimiser step -> factor of each group's learning rate.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        super().__init__(optimizer, factor)
        keep_settings(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the step."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a step; call it after the optimiser has loaded its state.

        Args:
            state_dict: What ``state_dict`` returned, or that of a ``LambdaLR``.
        """
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = self.last_epoch + 1
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def keep_settings(optimizer: Optimizer) -> None:
    """Let an optimiser keep its present settings when it loads a state: learning rate, weight decay, betas and the like.

    Args:
        optimizer: The optimiser.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]

    def put_back(loaded: Optimizer) -> None:
        for group, own in zip(loaded.param_groups, settings, strict=True):
            group.update(own)
            for p in group["params"] if group.get("fused") else ():  # which counts steps on the device of the weights
                if "step" in loaded.state[p]:
                    loaded.state[p]["step"] = loaded.state[p]["step"].to(p.device)

    optimizer.register_load_state_dict_post_hook(put_back)
