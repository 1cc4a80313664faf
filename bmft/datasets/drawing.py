"""Synthetic skin lesions drawn by formula with numpy, many at a time."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
SKIN = np.array(  # RGB of skin tones I to VI
    [
        [0.95, 0.81, 0.74],
        [0.91, 0.74, 0.63],
        [0.82, 0.62, 0.49],
        [0.66, 0.46, 0.34],
        [0.49, 0.32, 0.23],
        [0.34, 0.22, 0.16],
    ],
    dtype=np.float32,
)
INK = np.array([0.33, 0.20, 0.55], dtype=np.float32)  # gentian violet
_CHUNK = 40  # images drawn at once; at 64 x 64 their 2 MB stay in the processor's cache


def draw(label: Ints, tone: Ints, ink: Ints, *, seed: int = 0, size: int = 64) -> npt.NDArray[np.uint8]:
    """Draw one lesion per row: ``(n, size, size, 3)`` uint8. Same seed, same images.

    Args:
        label: ``(n,)`` 1 where the signs (lopsided, ragged, patchy) are strong, 0 where they are weak.
        tone: ``(n,)`` skin tone, 0 (I) to 5 (VI).
        ink: ``(n,)`` 1 where a surgeon's mark rings the lesion.
        seed: of the generator.
        size: side of an image.
    """

    def chunk(start: int) -> npt.NDArray[np.uint8]:
        rows = slice(start, start + _CHUNK)
        return _draw(label[rows], tone[rows], ink[rows], np.random.default_rng([seed, 2, start]), size)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return np.concatenate(list(pool.map(chunk, range(0, len(label), _CHUNK))))


def _draw(label: Ints, tone: Ints, ink: Ints, rng: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
    n = len(label)
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = grid[None, None, :], grid[None, :, None]
    skin = _skin(tone, rng, size)
    centre = rng.uniform(-0.18, 0.18, (2, n, 1, 1)).astype(np.float32)
    dx, dy = x - centre[0], y - centre[1]
    distance, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    shape, colour = _signs(label, rng)
    radius = rng.uniform(0.32, 0.56, n).astype(np.float32)
    border = _border(radius, shape, angle, rng)
    softness = rng.uniform(0.02, 0.05, (n, 1, 1)).astype(np.float32)
    lesion = _ramp((border - distance) / softness)
    image = skin + lesion[..., None] * (_lesion_colour(skin, colour, rng, size) - skin)
    _mark(image, distance, angle, radius, ink, rng)
    _hair(image, x, y, rng)
    shade = 1 - rng.uniform(0.1, 0.35, (n, 1, 1)).astype(np.float32) * (x**2 + y**2) ** 1.5 / 2
    image *= (shade * rng.uniform(0.92, 1.06, (n, 1, 1)).astype(np.float32))[..., None]
    image += rng.standard_normal(image.shape, dtype=np.float32) * 0.012
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _signs(label: Ints, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Strength of the shape and colour signs in [0, 1]; the two labels overlap."""
    strength = 0.22 + 0.56 * label + rng.normal(0, 0.11, (2, len(label)))
    shape, colour = np.clip(strength, 0, 1).astype(np.float32)
    return shape, colour


def _smooth(n: int, knots: int, rng: np.random.Generator, size: int) -> Floats:
    """``(n, size, size)`` smooth noise of unit variance, with `knots` bumps along a side."""
    at, knot = np.linspace(0, knots - 1, size)[:, None], np.arange(knots)[None]
    weights = np.exp(-((at - knot) ** 2) / 0.6)
    weights = (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
    noise = rng.standard_normal((n, knots, knots), dtype=np.float32)
    return np.asarray(weights @ noise @ weights.T, dtype=np.float32)


def _ramp(value: Floats) -> Floats:
    return np.float32(1) / (np.float32(1) + np.exp(-np.clip(value, -12, 12)))


def _skin(tone: Ints, rng: np.random.Generator, size: int) -> Floats:
    n = len(tone)
    place = np.clip(tone + rng.uniform(-0.45, 0.45, n), 0, len(SKIN) - 1)
    base = np.stack([np.interp(place, np.arange(len(SKIN)), SKIN[:, c]) for c in range(3)], axis=1)
    base = base * rng.normal(1, 0.02, (n, 3))
    texture = 1 + 0.025 * _smooth(n, 5, rng, size) + 0.015 * _smooth(n, 24, rng, size)
    flush = 0.012 * _smooth(n, 4, rng, size)
    image: Floats = base[:, None, None].astype(np.float32) * texture[..., None]
    image[..., 1:] -= flush[..., None]
    return image


def _border(radius: Floats, shape: Floats, angle: Floats, rng: np.random.Generator) -> Floats:
    """Distance of the border from the centre in each direction: a circle, an oval, lobes and notches."""
    n, turns = len(radius), np.linspace(-np.pi, np.pi, 256, endpoint=False)
    waves = np.arange(1, 13)
    # low waves make a lesion lopsided, high ones ragged; an oval (wave 2) says nothing about the label
    size = 0.26 / waves**0.9 * shape[:, None] * rng.rayleigh(0.8, (n, len(waves)))
    size[:, 1] = rng.uniform(0.02, 0.14, n)
    phase = rng.uniform(0, 2 * np.pi, (n, len(waves)))
    profile = 1 + ((size * np.exp(1j * phase)) @ np.exp(1j * np.outer(waves, turns))).real
    profile = (radius[:, None] * np.clip(profile, 0.35, 1.8)).astype(np.float32)
    step = ((angle + np.pi) * (256 / (2 * np.pi))).astype(np.int64) % 256
    return np.take_along_axis(profile, step.reshape(n, -1), axis=1).reshape(angle.shape)


def _lesion_colour(skin: Floats, colour: Floats, rng: np.random.Generator, size: int) -> Floats:
    """Brown by absorption of the skin's own colour; strong signs add black, blue-grey and red patches."""
    n = len(colour)
    depth = rng.uniform(0.75, 1.15, (n, 1, 1, 1)).astype(np.float32)
    absorbed = np.array([0.60, 0.82, 0.95], dtype=np.float32) * depth
    network = 1 + 0.10 * _smooth(n, 20, rng, size)[..., None] + 0.05 * _smooth(n, 6, rng, size)[..., None]
    image: Floats = skin * np.exp(-absorbed * network)
    light = skin.mean(axis=(1, 2, 3), keepdims=True)
    for paint, strength in (([0.10, 0.07, 0.08], 0.9), ([0.36, 0.40, 0.52], 0.75), ([0.72, 0.33, 0.30], 0.7)):
        patch = _ramp(5 * (_smooth(n, 4, rng, size) - 1.25 + 0.75 * colour[:, None, None]))
        weight = (strength * colour[:, None, None] * patch)[..., None]
        image += weight * (np.array(paint, dtype=np.float32) * (0.35 + 0.9 * light) - image)
    return image


def _mark(image: Floats, distance: Floats, angle: Floats, radius: Floats, ink: Ints, rng: np.random.Generator) -> None:
    """A surgeon's dashed ring of gentian violet round the lesion, on the images that have one."""
    n = len(ink)
    ring = (radius * rng.uniform(1.45, 1.6, n)).astype(np.float32)
    start, dashes = rng.uniform(0, 2 * np.pi, n).astype(np.float32), rng.integers(4, 8, n).astype(np.float32)
    for i in np.flatnonzero(ink):
        dash = _ramp(6 * np.cos(dashes[i] * angle[i] + start[i]) + 2)
        stroke = 0.8 * dash * np.exp(-(((distance[i] - ring[i]) / 0.035) ** 2))
        image[i] += stroke[..., None] * (INK - image[i])


def _hair(image: Floats, x: Floats, y: Floats, rng: np.random.Generator) -> None:
    for i in np.flatnonzero(rng.random((3, len(image))) < 0.3) % len(image):
        turn, bend, shift = rng.uniform((0, -0.35, -0.9), (np.pi, 0.35, 0.9)).astype(np.float32)
        along, across = x[0] * np.cos(turn) + y[0] * np.sin(turn), y[0] * np.cos(turn) - x[0] * np.sin(turn)
        strand = 0.75 * np.exp(-(((across - shift - bend * along**2) / 0.016) ** 2))
        image[i] += strand[..., None] * (np.float32(0.1) - image[i])
