"""The picture of a room: albedo, lamps, shadows, and what a cheap colour camera makes of them.

Not here: what is seen where (ray_cast.py), textures (textures.py), the depth sensor (sensor.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jointseg.data.synthetic.face import Face
from jointseg.data.synthetic.paint import Paint
from jointseg.data.synthetic.ray_cast import FOCAL_X, HEIGHT, SHELL, WIDTH, Floats, Patch, Solid, near_and_far
from jointseg.data.synthetic.room_plan import Plan
from jointseg.data.synthetic.textures import FRONT_TEXTURES, TEXTURES

SHADOW_STEP = 2
"""Shadows are found at every so many pixels, and blurred."""
MIN_CASTER = 0.02
"""Solids with a smaller diagonal face, in square metres, cast no shadow."""


def picture(plan: Plan, patches: Iterable[Patch], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The colour frame (480, 640, 3), RGB 0..255."""
    albedo = np.zeros((HEIGHT * WIDTH, 3), np.float32)
    glow = np.zeros(HEIGHT * WIDTH, np.float32)
    point, normal = np.zeros_like(albedo), np.zeros_like(albedo)
    thing = np.full(HEIGHT * WIDTH, -1, np.int32)
    for patch in patches:
        solid_number = patch.part - len(SHELL)
        paint = plan.shell[patch.part] if solid_number < 0 else plan.parts[solid_number].paint
        albedo[patch.pixels] = paint_patch(patch, paint, plan.camera.position)
        glow[patch.pixels] = paint.look.glow
        point[patch.pixels], normal[patch.pixels] = patch.point, patch.normal
        thing[patch.pixels] = -1 if solid_number < 0 else plan.parts[solid_number].thing
    light = _light(plan, point, normal, thing, rng)
    radiance = albedo * (light + glow[:, None])
    return _develop(radiance.reshape(HEIGHT, WIDTH, 3), rng)


def paint_patch(patch: Patch, paint: Paint, eye: Floats) -> Floats:
    """Albedo (N, 3) of a patch's pixels, linear RGB."""
    footprint = np.linalg.norm(patch.point - eye, axis=1) / FOCAL_X
    front = FRONT_TEXTURES.get(paint.look.texture)
    albedo = np.zeros_like(patch.point)
    for axis in range(3):
        here = patch.face == axis
        if not here.any():
            continue
        across, up = ((1, 2), (0, 2), (0, 1))[axis]
        u, v = patch.local[here, across], patch.local[here, up]
        wide, high = float(patch.half[across]), float(patch.half[up])
        face = Face(
            u=u + wide, v=v + high, s=(u / wide + 1) / 2, t=(v / high + 1) / 2, width=2 * wide, height=2 * high,
            footprint=footprint[here], colour=paint.colour, accent=paint.accent, offset=paint.offset,
        )  # fmt: skip
        texture = TEXTURES[paint.look.texture] if front is None else front[axis != 1]
        albedo[here] = texture(face)
    return np.clip(albedo, 0.004, 0.95)


def _light(plan: Plan, point: Floats, normal: Floats, thing: NDArray[np.int32], rng: np.random.Generator) -> Floats:
    """Irradiance (P, 3): ambient light dimmed in corners, one or two lamps, the first with shadows."""
    width, length, height = plan.room
    main = np.array([width * rng.uniform(0.25, 0.75), length * rng.uniform(0.3, 0.8), height - 0.15], np.float32)
    second = np.array(
        [width * rng.uniform(0.1, 0.9), length * rng.uniform(0.1, 0.9), height * rng.uniform(0.5, 0.9)], np.float32
    )
    warmth = rng.uniform(-0.02, 0.16)
    colour = np.array([1 + warmth, 1.0, 1 - 1.4 * warmth], np.float32)
    lit, contact = _shadows(plan, point, thing, main)
    corner = np.ones(len(point), np.float32)
    for axis in range(3):
        edge = np.minimum(point[:, axis], plan.room[axis] - point[:, axis])
        corner *= np.where(np.abs(normal[:, axis]) > 0.9, 1, 1 - 0.35 * np.exp(-np.abs(edge) / 0.25))
    ambient = rng.uniform(0.3, 0.5) * corner * contact * (0.85 + 0.15 * normal[:, 2])
    first = _lamp(point, normal, main) * (0.12 + 0.88 * lit) * contact
    other = _lamp(point, normal, second) * rng.uniform(0.0, 0.5) * contact
    return ambient[:, None] + (1.5 * first + other)[:, None] * colour


def _lamp(point: Floats, normal: Floats, lamp: Floats) -> Floats:
    """Lambert's cosine with distance fall-off, (P,); 1 at one metre below a lamp, softened near it."""
    x, y, z = (lamp[k] - point[:, k] for k in range(3))
    square = x * x + y * y + z * z
    cosine = (x * normal[:, 0] + y * normal[:, 1] + z * normal[:, 2]) / np.sqrt(square)
    return np.asarray(np.maximum(cosine, 0) * 2 / (1 + square * 0.5), np.float32)


def _shadows(plan: Plan, point: Floats, thing: NDArray[np.int32], lamp: Floats) -> tuple[Floats, Floats]:
    """How much each pixel sees of the lamp, and how little other things crowd it; (P,) each, 0..1."""
    shape = (HEIGHT // SHADOW_STEP, WIDTH // SHADOW_STEP)
    coarse = point.reshape(HEIGHT, WIDTH, 3)[::SHADOW_STEP, ::SHADOW_STEP].reshape(-1, 3).T.copy()
    owner = thing.reshape(HEIGHT, WIDTH)[::SHADOW_STEP, ::SHADOW_STEP].ravel()
    lit, contact = np.ones(owner.size, np.float32), np.ones(owner.size, np.float32)
    for part in plan.parts:
        solid = part.solid
        if np.sort(solid.half)[1:].prod() * 4 < MIN_CASTER or part.paint.look.glow > 1:
            continue
        local = solid.axes.T @ (coarse - solid.centre[:, None])
        other = owner != part.thing
        _crowd(solid, local, other, contact)
        _hide(solid, local, other, solid.axes.T @ (lamp - solid.centre), lit)
    return _enlarge(_blur(_blur(lit.reshape(shape)))), _enlarge(_blur(contact.reshape(shape)))


def _crowd(solid: Solid, local: Floats, other: NDArray[np.bool_], contact: Floats) -> None:
    """Darkens `contact` in place where points (3, P) of another thing lie within some 30 cm of the solid's box."""
    x, y, z = np.maximum(np.abs(local) - solid.half[:, None], 0)
    square = x * x + y * y + z * z
    near = np.flatnonzero((square < 0.1) & other)
    contact[near] *= 1 - 0.35 * np.exp(-9 * np.sqrt(square[near]))


def _hide(solid: Solid, local: Floats, other: NDArray[np.bool_], lamp: Floats, lit: Floats) -> None:
    """Sets `lit` to 0 in place where the solid's box stands between points (3, P) and the lamp."""
    open_ = np.flatnonzero(lit)
    half = solid.half[:, None]
    here = local[:, open_]
    near, far = near_and_far("box", list(here / half), list((lamp[:, None] - here) / half))
    # A thing's own surface starts inside its box: only what it meets further on is a shadow on itself.
    hidden = (near < far) & (far > 0.03) & (near < 0.97) & (other[open_] | (near > 0.02))
    lit[open_[hidden]] = 0


def _blur(image: Floats) -> Floats:
    """Weights 1 2 1 down and across (H, W, ...); the frame's edge stays as it is."""
    down = image.copy()
    down[1:-1] += image[1:-1]
    down[1:-1] += image[:-2]
    down[1:-1] += image[2:]
    down[1:-1] *= 0.25
    across = down.copy()
    across[:, 1:-1] += down[:, 1:-1]
    across[:, 1:-1] += down[:, :-2]
    across[:, 1:-1] += down[:, 2:]
    across[:, 1:-1] *= 0.25
    return across


def _enlarge(image: Floats) -> Floats:
    return image.repeat(SHADOW_STEP, 0).repeat(SHADOW_STEP, 1).ravel()


def _develop(radiance: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, white balance, vignetting, softness, noise and the square root that stands for gamma."""
    exposure = rng.uniform(0.12, 0.34) / np.median(radiance[::4, ::4])
    balance = np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)
    vignette = 1 - rng.uniform(0.05, 0.2) * (x * x + y * y) / 2
    exposed = _blur(radiance) * (vignette[..., None] * (exposure * balance).astype(np.float32))
    exposed = exposed / (1 + 0.25 * exposed)
    noise = rng.standard_normal((HEIGHT, WIDTH, 3), dtype=np.float32)
    values = np.sqrt(exposed) * 265 + noise * np.float32(rng.uniform(1.5, 4))
    return np.asarray(np.clip(values, 0, 255), np.uint8)
