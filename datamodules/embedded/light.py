"""Light of three lamps and the sky on matte surfaces, with soft shadows, for the ray caster.

The lamps' strengths are a least-squares fit to the median ground of i-CLEVR pictures, which it meets to about two of 255
levels.

Shape suffixes: X three coordinates, K blockers, L lamps, C colour channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LAMP_STRENGTHS = ((5.35, 4.98, 4.28), (1.13, 1.22, 1.52), (2.45, 2.45, 2.45))  # lamp x channel, on the ground
_AMBIENT = 0.133  # radiance of the ground far from all lamps
_LAMP_RADIUS = 0.5


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products (...) of vectors (X, ...)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (X, ...) at length 1."""
    return vectors * dot(vectors, vectors).rsqrt()


def light_on(point: Tensor, normal: Tensor, lamps: Tensor, blockers: Tensor, radii: Tensor) -> Tensor:
    """Light that a matte, ground-grey surface reflects.

    Args:
        point: (X, ...) points of the surface.
        normal: (X, ...) unit normals.
        lamps: (L, X, ...) places of the lamps.
        blockers: (K, X, ...) centres of spheres that cast shadows.
        radii: (K, ...) their radii, 0 for none.

    Returns:
        (C, ...) radiance.
    """
    ambient = torch.ones(())
    blocked = []
    for blocker, radius in zip(blockers, radii, strict=True):
        offset = blocker - point
        squared = dot(offset, offset)
        # A sphere wholly above the surface hides this share of a uniform sky, exactly.
        hidden = (dot(offset, normal) * squared.rsqrt()).clamp(0) * (radius**2 / squared)
        ambient = ambient * (1 - hidden.clamp(max=1))
        blocked.append((offset, squared, radius))
    # The lower half of the surroundings is the ground, lit about as brightly as the sky.
    radiance = [_AMBIENT * ambient] * 3
    for lamp, strength in zip(lamps, _LAMP_STRENGTHS, strict=True):
        lit = _lamp(point, normal, lamp, blocked)
        radiance = [before + share * lit for before, share in zip(radiance, strength, strict=True)]
    return torch.stack([channel.expand(point.shape[1:]) for channel in radiance])


def _lamp(point: Tensor, normal: Tensor, lamp: Tensor, blockers: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Irradiance (...) from a lamp of strength 1 that faces the origin, with soft shadows.

    Args:
        point: (X, ...) points of the surface.
        normal: (X, ...) unit normals.
        lamp: (X, ...) place of the lamp.
        blockers: Of each sphere that casts a shadow: offset (X, ...) from the point, its square, and radius (...).

    Returns:
        (...) irradiance.
    """
    offset = lamp - point
    squared = dot(offset, offset)
    inverse = squared.rsqrt()
    towards = offset * inverse
    light = dot(towards, normal).clamp(0) * dot(towards, unit(lamp)).clamp(0) / squared
    for relative, distance, radius in blockers:
        along = dot(relative, towards).clamp(0)
        beside = (distance - along * along).clamp(0).sqrt()
        # Seen from the point, the lamp is a disc of this radius at the sphere's distance.
        penumbra = (_LAMP_RADIUS * inverse * along).clamp(1e-3)
        overlap = ((radius + penumbra - beside) / (2 * penumbra)).clamp(0, 1)
        light = light * torch.where(radius > 0, 1 - overlap * overlap * (3 - 2 * overlap), 1)
    return light
