"""Solids, a pinhole camera, and which solid each pixel sees at which depth.

Not here: what the solids stand for (furniture.py), where they stand (room_plan.py), how they look (textures.py, light.py).
"""

# World: x and y span the floor, z points up, metres. Camera: x right, y down, z forward.
# A ray is origin + t * direction with direction's camera z equal to 1, so t is the z-depth in metres.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jointseg.data.frame import FRAME_SIZE

Floats = NDArray[np.floating[Any]]
"""float32 wherever there is one for every pixel."""
Shape = Literal["box", "ellipsoid", "cylinder", "cushion"]

HEIGHT, WIDTH = FRAME_SIZE
FOCAL_X, FOCAL_Y = 518.86, 519.47
"""Focal lengths of NYU Depth v2's colour camera, pixels (the dataset's toolbox, rounded)."""
CENTRE_X, CENTRE_Y = 325.58, 253.74
"""Its principal point, pixels."""
NEAR = 0.05
CUSHION_ROUNDNESS = 1.3
SHELL = ("left", "right", "near", "far", "floor", "ceiling")
"""The faces of the room's inside, in the order their numbers have in `Hits.part`."""


@dataclass(frozen=True)
class Solid:
    """A convex body inside the box `centre` +- `half` along its own `axes` (3, 3; one axis a column). Metres."""

    centre: Floats
    half: Floats
    axes: Floats
    shape: Shape = "box"

    def corners(self) -> Floats:
        """The eight corners of its box in the world, (8, 3)."""
        signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), -1).reshape(8, 3).astype(np.float32)
        return self.centre + (signs * self.half) @ self.axes.T


@dataclass(frozen=True)
class Camera:
    """Pinhole camera at `position` (3,); the columns of `axes` (3, 3) are its right, down and forward in the world."""

    position: Floats
    axes: Floats

    @classmethod
    def looking(cls, position: Floats, *, yaw: float, pitch: float, roll: float) -> Camera:
        """Looks along +y of the world, turned by `yaw` to the left, `pitch` up and `roll` clockwise (radians)."""
        forward = np.array([-np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), np.sin(pitch)])
        right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        down = np.cross(forward, right)
        right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
        return cls(position.astype(np.float32), np.stack([right, down, forward], 1).astype(np.float32))


@dataclass(frozen=True)
class Hits:
    """What each pixel sees: z-depth in metres, and 0..5 for the shell's faces or 6 + the solid's number. Both (480, 640)."""

    depth: Floats
    part: NDArray[np.int16]


@dataclass(frozen=True)
class Patch:
    """The N pixels that see one part: flat pixel numbers, and for each its point, normal and face.

    Attributes:
        part: as in `Hits.part`.
        pixels: (N,) into the flattened frame.
        local: (N, 3) metres, from the solid's centre along its axes.
        half: (3,) metres, of the solid.
        face: (N,) the axis the surface faces most, 0..2.
        point: (N, 3) metres in the world.
        normal: (N, 3) unit, in the world.
    """

    part: int
    pixels: NDArray[np.intp]
    local: Floats
    half: Floats
    face: NDArray[np.intp]
    point: Floats
    normal: Floats


def pixel_rays() -> tuple[Floats, Floats]:
    """Camera x of each column (640,) and camera y of each row (480,), at z = 1."""
    x = (np.arange(WIDTH, dtype=np.float32) - CENTRE_X) / FOCAL_X
    y = (np.arange(HEIGHT, dtype=np.float32) - CENTRE_Y) / FOCAL_Y
    return x.astype(np.float32), y.astype(np.float32)


def near_and_far(shape: Shape, origin: Sequence[Floats], ray: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Where rays enter and leave the unit solid [-1, 1]^3; entry > exit (or nan) means a miss."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if shape == "ellipsoid":
            return _quadric(origin, ray, radius=1.0)
        if shape == "cylinder":
            near, far = _quadric(origin[:2], ray[:2], radius=1.0)
            low, high = _slabs(origin[2:], ray[2:])
        else:
            near, far = _slabs(origin, ray)
            if shape == "box":
                return near, far
            low, high = _quadric(origin, ray, radius=CUSHION_ROUNDNESS)
        return np.maximum(near, low), np.minimum(far, high)


def _slabs(origin: Sequence[Floats], ray: Sequence[Floats]) -> tuple[Floats, Floats]:
    near = far = None
    for o, d in zip(origin, ray, strict=True):
        inverse = 1 / d
        middle = -o * inverse
        extent = np.abs(inverse)
        near = middle - extent if near is None else np.maximum(near, middle - extent)
        far = middle + extent if far is None else np.minimum(far, middle + extent)
    assert near is not None
    assert far is not None
    return near, far


def _quadric(origin: Sequence[Floats], ray: Sequence[Floats], *, radius: float) -> tuple[Floats, Floats]:
    a = sum(d * d for d in ray)
    b = sum(o * d for o, d in zip(origin, ray, strict=True))
    c = sum(o * o for o in origin) - np.float32(radius**2)
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def cast(solids: Sequence[Solid], camera: Camera, *, room: Floats) -> Hits:
    """The nearest surface at every pixel, inside a room that spans 0..`room` (3,) metres."""
    columns, rows = pixel_rays()
    depth, part = _cast_shell(camera, room, columns, rows)
    for number, solid in enumerate(solids):
        window = _window(solid, camera)
        if window is None:
            continue
        origin = list((solid.axes.T @ (camera.position - solid.centre)) / solid.half)
        right, down, forward = ((solid.axes.T @ camera.axes) / solid.half[:, None]).T
        x, y = columns[window[1]][None, :], rows[window[0]][:, None]
        ray = [x * right[k] + (y * down[k] + forward[k]) for k in range(3)]
        near, far = near_and_far(solid.shape, origin, ray)
        hit = (near < far) & (near > NEAR) & (near < depth[window])
        np.copyto(depth[window], near, where=hit)
        np.copyto(part[window], np.int16(len(SHELL) + number), where=hit)
    return Hits(depth, part)


def _cast_shell(camera: Camera, room: Floats, columns: Floats, rows: Floats) -> tuple[Floats, NDArray[np.int16]]:
    depth = np.full((HEIGHT, WIDTH), np.inf, np.float32)
    part = np.zeros((HEIGHT, WIDTH), np.int16)
    right, down, forward = camera.axes.T
    for axis in range(3):
        ray = columns[None, :] * right[axis] + (rows[:, None] * down[axis] + forward[axis])
        ray[ray == 0] = 1e-9
        leaves = np.where(ray > 0, room[axis] - camera.position[axis], -camera.position[axis]) / ray
        nearer = leaves < depth
        depth[nearer] = leaves[nearer]
        part[nearer] = (2 * axis + (ray > 0))[nearer]
    return depth, part


def _window(solid: Solid, camera: Camera) -> tuple[slice, slice] | None:
    """The rows and columns the solid can cover; None where it is out of sight."""
    x, y, z = ((solid.corners() - camera.position) @ camera.axes).T
    if z.max() < NEAR:
        return None
    if z.min() < NEAR:
        return slice(0, HEIGHT), slice(0, WIDTH)
    u, v = x / z * FOCAL_X + CENTRE_X, y / z * FOCAL_Y + CENTRE_Y
    top, bottom = max(int(np.floor(v.min())), 0), min(int(np.ceil(v.max())) + 1, HEIGHT)
    left, right = max(int(np.floor(u.min())), 0), min(int(np.ceil(u.max())) + 1, WIDTH)
    return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None


def patches(hits: Hits, solids: Sequence[Solid], camera: Camera, *, room: Floats) -> Iterator[Patch]:
    """The visible pixels, part by part."""
    columns, rows = pixel_rays()
    shell = Solid(room / 2, room / 2, np.eye(3, dtype=np.float32))
    flat = hits.part.ravel()
    order = np.argsort(flat, kind="stable")
    ends = np.cumsum(np.bincount(flat, minlength=len(SHELL) + len(solids)))
    for number, (start, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
        if start == end:
            continue
        pixels = order[start:end]
        t = hits.depth.ravel()[pixels]
        eye = np.stack([columns[pixels % WIDTH] * t, rows[pixels // WIDTH] * t, t], 1)
        point = eye @ camera.axes.T + camera.position
        if number < len(SHELL):
            axis, sign = divmod(number, 2)
            normal = np.zeros((1, 3), np.float32)
            normal[0, axis] = 1 - 2 * sign
            face = np.full(len(pixels), axis)
            yield Patch(number, pixels, point - shell.centre, shell.half, face, point, np.repeat(normal, len(pixels), 0))
            continue
        solid = solids[number - len(SHELL)]
        local = (point - solid.centre) @ solid.axes
        face, normal = _faces_and_normals(solid, local)
        yield Patch(number, pixels, local, solid.half, face, point, normal @ solid.axes.T)


def _faces_and_normals(solid: Solid, local: Floats) -> tuple[NDArray[np.intp], Floats]:
    unit = local / solid.half
    size = np.abs(unit)
    face = size.argmax(1)
    flat = np.zeros_like(local)
    flat[np.arange(len(local)), face] = np.sign(unit[np.arange(len(local)), face])
    if solid.shape == "box":
        return face, flat
    round_ = unit / solid.half
    if solid.shape == "cylinder":
        round_[:, 2] = 0
        flat_here = size[:, 2] > 0.999
    else:
        flat_here = size.max(1) > 0.999 if solid.shape == "cushion" else np.zeros(len(local), bool)
    round_ /= np.maximum(np.linalg.norm(round_, axis=1, keepdims=True), 1e-9)
    normal = np.where(flat_here[:, None], flat, round_)
    return np.abs(normal).argmax(1), normal.astype(np.float32)
