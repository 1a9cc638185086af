"""Muon: momentum whose steps are orthogonalised for the matrices between hidden features, AdamW for all other weights.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest semi-orthogonal matrix, so that all directions of
a weight move alike; at the rate that matches AdamW's root-mean-square step (Liu et al. 2025, arXiv 2502.16982, section 2.2).
Own code and not ``torch.optim.Muon``, whose step it equals: that one takes no convolutions, no matrices stacked in a weight
and no second rule for the other weights, works matrix by matrix, and in bfloat16, which most CPUs only emulate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from generative.checks import checked
from generative.ranges import BelowOne, Count, NonNegative, Positive

# Of each iteration, the last one last: where singular values may begin, and coefficients of s, s^3, s^5. Each polynomial is the
# nearest to 1 on what the one before leaves, 2 % further for rounding; the last one ends within 0.2 of 1 (arXiv 2505.16932).
POLYNOMIALS = (
    (2.0384, 4.1605, -2.9693, 0.5303),
    (2.0334, 4.1193, -2.9421, 0.5274),
    (2.0129, 3.9581, -2.8352, 0.5160),
    (1.9328, 3.4317, -2.4767, 0.4780),
    (1.6752, 2.4542, -1.7503, 0.4030),
)
MARGIN = 1.02  # for rounding, in bfloat16 above all
MATCHED_RMS = 0.2  # root-mean-square step of AdamW (arXiv 2502.16982, eq. 4)
EPSILON = 1e-7  # below the norm of a gradient
LEAST_NORM = 1e-2  # of singular values whose squares sum to 1; smaller ones are of a gradient below EPSILON


def orthogonalised(matrix_NRC: Tensor, num_iterations: int) -> Tensor:
    """Return nearly the semi-orthogonal factor U V^T of each matrix U S V^T, by Newton-Schulz iterations.

    They begin relative to the 8-norm of the singular values, which bounds the largest one more closely than the Frobenius norm
    and comes with the first iteration (arXiv 2506.10935, Gelfand's formula).

    Args:
        matrix_NRC: (N, R, C) matrices, in the precision to compute in.
        num_iterations: 4 bring singular values above 0.3 % of that norm into [0.8, 1.2], each further one those four times
            smaller.

    Returns:
        (N, R, C) matrices.
    """
    tall = matrix_NRC.shape[1] > matrix_NRC.shape[2]
    x = matrix_NRC.mT if tall else matrix_NRC
    x = x / x.flatten(1).norm(dim=1).clamp(min=EPSILON)[:, None, None]
    first = len(POLYNOMIALS) - num_iterations
    for number in range(first, len(POLYNOMIALS)):
        begin, a, b, c = POLYNOMIALS[max(number, 0)]
        gram = x @ x.mT
        squared = gram @ gram
        scale = torch.ones_like(gram[:, :1, :1])
        if number == first:
            norm = squared.flatten(1).norm(dim=1)[:, None, None] ** 0.25
            scale = begin / MARGIN / norm.clamp(min=LEAST_NORM)
        polynomial = gram.mul_(b * scale**3).addcmul_(squared, scale**5, value=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a * scale[:, :, 0])
        x = polynomial @ x
    return x.mT if tall else x


@checked("optimizer")
class Muon(Optimizer):
    """Muon for matrices between hidden features, AdamW (arXiv 1711.05101) for the rest; one schedule scales both rates.

    Args:
        params: Parameters, or groups of them; in ``matrices`` a group says for each parameter how many matrices are stacked in
            it, 0 for those that AdamW takes. Where none are said, a parameter of two or more dimensions is one. A convolution's
            weight is a matrix of a row per output channel.
        lr: Learning rate of AdamW.
        matrix_lr: Learning rate of the matrices; the root mean square of a step is about 0.2 times it.
        momentum: Decay of the matrices' momentum, which is Nesterov's.
        num_iterations: Newton-Schulz iterations.
        betas: Decays of AdamW's averages.
        eps: Added to the root of AdamW's second average.
        weight_decay: Decoupled, of the groups that do not say otherwise.
        fused: Take AdamW's steps with PyTorch's fused kernel.
    """

    not_shardable: ClassVar[str] = "it needs whole matrices, and each rank has a part"

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: Positive = 1e-3,
        matrix_lr: Positive = 5e-3,
        momentum: BelowOne = 0.95,
        num_iterations: Count = 4,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.95),
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
        fused: bool = False,
    ) -> None:
        rest: list[dict[str, Any]] = []
        hidden: list[dict[str, Any]] = []
        given: list[Any] = list(params)
        for group in [{"params": given}] if given and isinstance(given[0], Tensor) else given:
            parameters = list(group["params"])
            settings = {name: value for name, value in group.items() if name not in ("params", "matrices")}
            numbers = group.get("matrices", [int(p.ndim > 1) for p in parameters])
            pairs = list(zip(parameters, numbers, strict=True))
            of_adamw = {"lr": lr, "betas": tuple(betas), "eps": eps, "fused": fused}
            rest.append({**of_adamw, **settings, "params": [p for p, number in pairs if not number]})
            matrices = [(p, number) for p, number in pairs if number]
            if matrices:
                of_matrices = {"lr": matrix_lr, "momentum": momentum, "num_iterations": num_iterations}
                whole, stacked = zip(*matrices, strict=True)
                hidden.append({**of_matrices, **settings, "params": list(whole), "matrices": list(stacked)})
        super().__init__([*rest, *hidden], {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "matrices" in group:
                self._step_matrices(group)
            else:
                self._step_adamw(group)
        return loss

    def _step_adamw(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for p in parameters:
            if not self.state[p]:
                step = torch.zeros((), device=p.device if group["fused"] else "cpu")
                self.state[p].update(step=step, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        means, squares, steps = (
            [self.state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        beta1, beta2 = group["betas"]
        adamw(
            parameters, [p.grad for p in parameters], means, squares, [], steps,
            foreach=not group["fused"], fused=group["fused"], amsgrad=False, beta1=beta1, beta2=beta2,
            lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip

    def _step_matrices(self, group: dict[str, Any]) -> None:
        pairs = [(p, n) for p, n in zip(group["params"], group["matrices"], strict=True) if p.grad is not None]
        if not pairs:
            return
        parameters = [p for p, _ in pairs]
        gradients = [p.grad for p in parameters]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        alike: dict[tuple[Any, ...], list[tuple[nn.Parameter, Tensor]]] = {}  # of one size: orthogonalised together
        for (p, number), update in zip(pairs, updates, strict=True):
            stack = update.reshape(number, len(p) // number, -1)
            alike.setdefault((stack.shape[1:], stack.device), []).append((p, stack))
        for (shape, device), members in alike.items():
            precision = torch.bfloat16 if device.type == "cuda" else torch.float32
            stacks = torch.cat([stack for _, stack in members]).to(precision)
            steps = orthogonalised(stacks, group["num_iterations"]).split([len(stack) for _, stack in members])
            length = group["lr"] * MATCHED_RMS * math.sqrt(max(shape))
            for (p, _), step in zip(members, steps, strict=True):
                p.sub_(step.to(p.dtype).reshape(p.shape), alpha=length)
