"""A ray caster for scenes like those of CLEVR (Johnson et al. 2017): matte cubes, spheres and cylinders on grey ground.

Camera, lamps and their places are those of CLEVR's base scene as Kubric publishes them (Greff et al. 2022).

Shape suffixes: X three coordinates (first, so that each is contiguous), N scenes, K objects of a scene, L lamps,
P pixels, M pixels near an object, Q samples of a pixel, H samples that hit an object, C colour channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from datamodules.embedded.light import dot, light_on, unit

CUBE, SPHERE, CYLINDER = range(3)  # the order of ``labels.SHAPES``
CAMERA = (7.481, -6.508, 5.344)
CAMERA_DISTANCE = 11.26  # the camera's distance from the origin, which it looks at
TANGENTS = (16 / 35, 12 / 35)  # of half the field of view: a 32 mm sensor of 4:3 behind a lens of 35 mm
LAMPS = ((6.447, -2.905, 4.258), (-4.671, -4.014, 3.011), (-1.169, 2.646, 5.816))  # key, fill, back
RADIUS = 0.7  # of the spheres and cylinders, which are as high as wide
HALF_HEIGHTS = (RADIUS / 2**0.5, RADIUS, RADIUS)  # in the order of the shapes

_OBJECT_GAIN = 1.25  # of an object's albedo over the ground's
_SHEEN = 0.036  # albedo that rubber of any colour reflects unchanged
_BOUNDS = (1.7320508 * HALF_HEIGHTS[CUBE], RADIUS, 1.4142136 * RADIUS)  # radii of spheres around the shapes
_BLOCKERS = (0.6, 0.7, 0.75)  # radii of the spheres that cast the shapes' shadows
_NUM_OFFSETS = 3  # samples per side of a pixel at the objects' outlines


@dataclass(frozen=True)
class Scenes:
    """Places of everything in a batch of scenes; lengths are CLEVR's units, the ground is z = 0.

    Attributes:
        present: (N, K) bool, whether there is a k-th object; those that are there come first.
        shape: (N, K) int64 shapes: ``CUBE``, ``SPHERE`` or ``CYLINDER``.
        albedo: (N, K, C) linear colours in [0, 1].
        place: (N, K, 2) points of the ground below the objects' centres.
        angle: (N, K) rotations about the vertical axis in radians.
        camera: (N, X) places of the camera.
        lamps: (N, L, X) places of the key, fill and back lamp.
    """

    present: Tensor
    shape: Tensor
    albedo: Tensor
    place: Tensor
    angle: Tensor
    camera: Tensor
    lamps: Tensor

    def __len__(self) -> int:
        return len(self.present)

    def select(self, rows: Tensor | slice) -> Scenes:
        """Return some of the scenes.

        Args:
            rows: Row numbers, a mask or a slice.

        Returns:
            The scenes of these rows.
        """
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def trimmed(self) -> Scenes:
        """Return the scenes without the trailing objects that none of them has.

        Returns:
            Scenes with a smaller K, at least 1.
        """
        count = int(self.present.any(0).sum().clamp(min=1))
        objects = {name: getattr(self, name)[:, :count] for name in ("present", "shape", "albedo", "place", "angle")}
        return replace(self, **objects)

    def centres(self) -> Tensor:
        """Return the objects' centres.

        Returns:
            (X, N, K) points.
        """
        return torch.stack([*self.place.unbind(-1), torch.tensor(HALF_HEIGHTS)[self.shape]])

    def blocker_radii(self) -> Tensor:
        """Return the radii of the spheres that cast the objects' shadows.

        Returns:
            (K, N) radii, 0 where there is no object.
        """
        return torch.where(self.present, torch.tensor(_BLOCKERS)[self.shape], 0).T.contiguous()


def camera_axes(camera_NX: Tensor) -> Tensor:
    """Return the axes of cameras that look at the origin.

    Args:
        camera_NX: (N, X) places of the cameras.

    Returns:
        (3, X, N) unit vectors: right, up and forward.
    """
    forward = -unit(camera_NX.T)
    level = torch.stack([forward[1], -forward[0], torch.zeros_like(forward[0])])
    right = unit(level)
    return torch.stack([right, torch.linalg.cross(right, forward, dim=0), forward])


def project(points_XNR: Tensor, camera_NX: Tensor) -> tuple[Tensor, Tensor]:
    """Project points onto the picture.

    Args:
        points_XNR: (X, N, R) points of each scene.
        camera_NX: (N, X) places of the cameras.

    Returns:
        (2, N, R) places in the picture, right and up, whose border is at -1 and 1; and (N, R) depths.
    """
    right, up, forward = camera_axes(camera_NX)[..., None]
    relative = points_XNR - camera_NX.T[..., None]
    depth = dot(relative, forward)
    tangent_x, tangent_y = TANGENTS
    return torch.stack([dot(relative, right) / tangent_x, dot(relative, up) / tangent_y]) / depth, depth


def render(scenes: Scenes, size: int) -> Tensor:
    """Draw scenes: the ground once per pixel, objects with ``_NUM_OFFSETS`` squared samples per pixel.

    Args:
        scenes: N scenes.
        size: Side S of the pictures in pixels; the view of 4:3 is squeezed into the square.

    Returns:
        (N, 3, S, S) uint8 pictures.
    """
    scenes = scenes.trimmed()
    axes = camera_axes(scenes.camera)
    rays_XNP = _directions(axes, *_pixel_grid(size))
    picture_CNP = _ground(scenes, rays_XNP)
    near_NPK = _near(scenes, rays_XNP, size)
    scene_M, pixel_M = near_NPK.any(-1).nonzero(as_tuple=True)
    if len(scene_M):
        colour_CM, covered_M = _objects(scenes, axes, near_NPK[scene_M, pixel_M], scene_M, pixel_M, size)
        ground_CM = picture_CNP[:, scene_M, pixel_M]
        picture_CNP[:, scene_M, pixel_M] = colour_CM + (1 - covered_M) * ground_CM
    return _encode(picture_CNP).view(3, len(scenes), size, size).transpose(0, 1).contiguous()


def shown(scenes: Scenes, size: int) -> Tensor:
    """Tell which objects the pixels of ``render``'s pictures show.

    Args:
        scenes: N scenes.
        size: Side S of the pictures in pixels.

    Returns:
        (N, K, S, S) booleans, true where an object covers at least half of the pixel and no nearer one hides it.
    """
    axes = camera_axes(scenes.camera)
    near_NPK = _near(scenes, _directions(axes, *_pixel_grid(size)), size)
    scene_M, pixel_M = near_NPK.any(-1).nonzero(as_tuple=True)
    shown_NKP = torch.zeros(*scenes.present.shape, size**2, dtype=torch.bool)
    if len(scene_M):
        _, depth_MQ, nearest_MQ = _hits(scenes, axes, near_NPK[scene_M, pixel_M], scene_M, pixel_M, size)
        for k in range(scenes.present.shape[1]):
            covered_M = ((nearest_MQ == k) & depth_MQ.isfinite()).float().mean(1)
            shown_NKP[scene_M, k, pixel_M] = covered_M >= 0.5
    return shown_NKP.unflatten(-1, (size, size))


def _pixel_grid(size: int) -> tuple[Tensor, Tensor]:
    """Return the places (P,) of the pixels' centres, right and up, in rows from the top."""
    middle = (torch.arange(size) + 0.5) * (2 / size) - 1
    return middle.repeat(size), -middle.repeat_interleave(size)


def _directions(axes: Tensor, right: Tensor, up: Tensor) -> Tensor:
    """Return the rays (X, N, R) of unit depth through places of the picture: (R,) or (N, R), as ``project`` has."""
    axis_right, axis_up, axis_forward = axes[..., None]
    return axis_forward + (TANGENTS[0] * right) * axis_right + (TANGENTS[1] * up) * axis_up


def _ground(scenes: Scenes, rays_XNP: Tensor) -> Tensor:
    """Return the radiance (C, N, P) of the ground along the rays, in the objects' shadows."""
    camera = scenes.camera.T[..., None]
    point = camera - (camera[2] / rays_XNP[2]) * rays_XNP
    normal = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)
    lamps_LXN1, blockers_KXN1 = scenes.lamps.permute(1, 2, 0)[..., None], scenes.centres().permute(2, 0, 1)[..., None]
    return light_on(point, normal, lamps_LXN1, blockers_KXN1, scenes.blocker_radii()[..., None])


def _near(scenes: Scenes, rays_XNP: Tensor, size: int) -> Tensor:
    """Return whether an object may show in a pixel (N, P, K): its ray passes the sphere around the object."""
    margin = 1.5 * TANGENTS[0] * 2 / size  # more than half of a pixel's diagonal, at unit depth
    squared = dot(rays_XNP, rays_XNP)
    near = []
    for k, centre in enumerate(scenes.centres().unbind(-1)):
        relative = centre - scenes.camera.T
        reach = torch.tensor(_BOUNDS)[scenes.shape[:, k]] + margin * dot(relative, relative).sqrt()
        beyond = (dot(relative, relative) - reach**2)[:, None]
        near.append((dot(rays_XNP, relative[..., None]).square() > beyond * squared) & scenes.present[:, k, None])
    return torch.stack(near, dim=-1)


def _objects(
    scenes: Scenes, axes: Tensor, near_MK: Tensor, scene_M: Tensor, pixel_M: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Return the objects' radiance (C, M) averaged over each pixel, and the share (M,) of it they cover."""
    rays_XMQ, depth_MQ, nearest_MQ = _hits(scenes, axes, near_MK, scene_M, pixel_M, size)
    row_H, sample_H = depth_MQ.isfinite().nonzero(as_tuple=True)
    hit = (scene_M[row_H], nearest_MQ[row_H, sample_H])
    point = scenes.camera.T[:, hit[0]] + depth_MQ[row_H, sample_H] * rays_XMQ[:, row_H, sample_H]
    share = 1 / _NUM_OFFSETS**2
    colour = torch.zeros(3, len(scene_M)).index_add_(1, row_H, _surface(scenes, *hit, point), alpha=share)
    return colour, depth_MQ.isfinite().sum(1) * share


def _hits(
    scenes: Scenes, axes: Tensor, near_MK: Tensor, scene_M: Tensor, pixel_M: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rays (X, M, Q) of the pixels' samples, the depths (M, Q) at which they meet an object, and which (M, Q).

    The depth of a ray that meets none is infinite.
    """
    offset = ((torch.arange(_NUM_OFFSETS) + 0.5) / _NUM_OFFSETS - 0.5) * (2 / size)
    right, up = (place[pixel_M, None] for place in _pixel_grid(size))
    right, up = right + offset.repeat(_NUM_OFFSETS), up + offset.repeat_interleave(_NUM_OFFSETS)
    rays_XMQ = _directions(axes[..., scene_M], right, up)
    centres = scenes.centres()
    depth_KMQ = torch.full((near_MK.shape[1], *rays_XMQ.shape[1:]), torch.inf)
    for k, depth_MQ in enumerate(depth_KMQ):
        shape_M = scenes.shape[scene_M, k]
        for shape in (CUBE, SPHERE, CYLINDER):
            rows = (near_MK[:, k] & (shape_M == shape)).nonzero()[:, 0]
            row_scenes = scene_M[rows]
            origin = scenes.camera.T[:, row_scenes] - centres[:, row_scenes, k]
            turn = scenes.angle[row_scenes, k, None]
            depth_MQ[rows] = _depth(shape, _turn(origin[..., None], turn), _turn(rays_XMQ[:, rows], turn))
    return rays_XMQ, *depth_KMQ.min(0)


def _turn(vectors: Tensor, angle: Tensor) -> Tensor:
    """Rotate vectors (X, ...) about the vertical axis by minus the angle, into an object's own axes."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack(
        [cos * vectors[0] + sin * vectors[1], cos * vectors[1] - sin * vectors[0], vectors[2].expand_as(vectors[0])]
    )


def _depth(shape: int, origin: Tensor, ray: Tensor) -> Tensor:
    """Return the depths (...) at which rays (X, ...) from outside meet a shape about zero, infinite for a miss."""
    height = HALF_HEIGHTS[shape]
    if shape == SPHERE:
        enter, leave = _roots(dot(ray, ray), dot(origin, ray), dot(origin, origin) - RADIUS**2)
    elif shape == CYLINDER:
        side = _roots(
            ray[0] ** 2 + ray[1] ** 2,
            origin[0] * ray[0] + origin[1] * ray[1],
            origin[0] ** 2 + origin[1] ** 2 - RADIUS**2,
        )
        caps = _slab(origin[2], ray[2], height)
        enter, leave = torch.maximum(side[0], caps[0]), torch.minimum(side[1], caps[1])
    else:
        slabs = [_slab(origin[axis], ray[axis], height) for axis in range(3)]
        enter = torch.stack([slab[0] for slab in slabs]).amax(0)
        leave = torch.stack([slab[1] for slab in slabs]).amin(0)
    return torch.where(enter <= leave, enter, torch.inf)  # false for the NaN of rays that miss a round side


def _roots(a: Tensor, half_b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    root = (half_b * half_b - a * c).sqrt()
    return (-half_b - root) / a, (-half_b + root) / a


def _slab(origin: Tensor, ray: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """Return where rays enter and leave the space between two parallel planes."""
    inverse = 1 / torch.where(ray.abs() < 1e-7, 1e-7, ray)
    middle, reach = -origin * inverse, half * inverse.abs()
    return middle - reach, middle + reach


def _normals(shape_H: Tensor, local_XH: Tensor) -> Tensor:
    """Return the unit normals (X, H) of shapes at points of their surface, in their own axes."""
    x, y, z = local_XH
    side = torch.stack([x, y, torch.zeros_like(z)])
    top = torch.stack([torch.zeros_like(x), torch.zeros_like(x), z])
    on_cap = z.abs() * RADIUS > (x * x + y * y).sqrt() * HALF_HEIGHTS[CYLINDER]
    cylinder = torch.where(on_cap, top, side)
    reach = local_XH.abs()
    cube = torch.where(reach >= reach.amax(0), local_XH, 0)
    return unit(torch.where(shape_H == SPHERE, local_XH, torch.where(shape_H == CYLINDER, cylinder, cube)))


def _surface(scenes: Scenes, scene_H: Tensor, object_H: Tensor, point_XH: Tensor) -> Tensor:
    """Return the radiance (C, H) of points of objects, in the other objects' shadows."""
    shape, angle = scenes.shape[scene_H, object_H], scenes.angle[scene_H, object_H]
    centres = scenes.centres()
    normal = _turn(_normals(shape, _turn(point_XH - centres[:, scene_H, object_H], angle)), -angle)
    objects = torch.arange(scenes.shape.shape[1])[:, None]
    radii_KH = torch.where(objects == object_H, 0, scenes.blocker_radii()[:, scene_H])
    # Indexed along the last axis, so that the copies are contiguous.
    lamps_LXH = scenes.lamps.permute(1, 2, 0).contiguous()[..., scene_H]
    blockers_KXH = centres.permute(2, 0, 1).contiguous()[..., scene_H]
    light = light_on(point_XH, normal, lamps_LXH, blockers_KXH, radii_KH)
    return light * (_SHEEN + _OBJECT_GAIN * scenes.albedo.permute(2, 0, 1)[:, scene_H, object_H])


def _encode(radiance: Tensor) -> Tensor:
    """Return sRGB values as uint8."""
    encoded = torch.where(radiance < 0.0031308, 12.92 * radiance, 1.055 * radiance.clamp(1e-4) ** (1 / 2.4) - 0.055)
    return (255 * encoded.clamp(0, 1)).round().to(torch.uint8)
