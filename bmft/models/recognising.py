"""Networks recognised by their weights' names and shapes."""

import logging
from importlib.util import find_spec

from bmft.errors import ArchitectureError
from bmft.models.architectures import Shapes, fit_of, index, matches, nearest
from bmft.models.building import need_timm, outline_shapes
from bmft.models.fitting import Fitted, fitted
from bmft.models.libraries import candidates

log = logging.getLogger(__name__)


def recognised(shapes: Shapes) -> Fitted:
    """The network that has these weights: a published one, or one with another head, channels or size of image.

    Raises:
        ArchitectureError, MissingExtraError: see `infer_architecture`.
    """
    if matches(shapes):
        return fitted(infer_architecture(shapes), lambda _: shapes)
    for arch in candidates(shapes):
        found = fitted(arch, lambda _: shapes)
        if not found.fit.distance:
            return found
    near = [fitted(arch, lambda _: shapes) for arch in _usable(shapes)]
    exact = [one for one in near if not one.fit.distance]
    ours = [one for one in exact if one.arch.startswith("torchvision:")] or exact
    if len(ours) > 1:
        raise _ambiguous([one.arch for one in ours])
    if not ours:
        raise ArchitectureError(_in_words(shapes))
    return ours[0]


def infer_architecture(shapes: Shapes) -> str:
    """The network that has these weights, whatever its number of outputs.

    Looked up among torchvision's classification networks, then among timm's. Weights do not tell everything:
    torchvision's pre-trained Inception and GoogLeNet also rescale their input (``transform_input=True``).

    Args:
        shapes: name -> shape of every tensor, without a prefix.

    Returns:
        A string for `build_model`.

    Raises:
        ArchitectureError: none has them (the message names the nearest), or several have.
        MissingExtraError: it is timm's, which is not installed.

    >>> from bmft.models import build_model, shapes_of
    >>> infer_architecture(shapes_of(build_model("torchvision:resnet18", num_outputs=7).state_dict()))
    'torchvision:resnet18'
    """
    found = matches(shapes)
    ours = [arch for arch in found if arch.startswith("torchvision:")] or found
    if len(ours) > 1:
        raise _ambiguous(ours)
    if not ours:
        raise ArchitectureError(_in_words(shapes))
    if ours[0].startswith("timm:"):
        need_timm(ours[0])
    if "inception_v3" in ours[0] or "googlenet" in ours[0]:
        log.warning(
            "taken as %s; if it was trained from torchvision's own weights, give --arch %s,transform_input=True",
            ours[0],
            ours[0],
        )
    return ours[0]


def _usable(shapes: Shapes) -> list[str]:
    """The networks that share most names and shapes with the weights, of libraries that are installed."""
    return [arch for arch in nearest(shapes, 8) if arch.startswith("torchvision:") or find_spec("timm")][:5]


def _ambiguous(archs: list[str]) -> ArchitectureError:
    return ArchitectureError(
        f"{len(archs)} networks have these weights and may compute different things: {', '.join(archs)}. "
        "Say which with --arch."
    )


def _in_words(shapes: Shapes) -> str:
    fits = {arch: fit_of(outline_shapes(arch, _outputs(arch, shapes)), shapes) for arch in _usable(shapes)}
    best = sorted(fits, key=lambda arch: fits[arch].distance)[:3]
    words = "; ".join(f"{arch} ({fits[arch].notes})" for arch in best)
    return (
        f"no network of torchvision{' or timm' if find_spec('timm') else ''} has these weights. "
        f"{f'Nearest: {words}. ' if words else ''}Give the network with --arch, such as torchvision:resnet18, "
        "timm:vit_tiny_patch16_224,img_size=64 or your own package.module:factory or path/to/file.py:Class."
    )


def _outputs(arch: str, shapes: Shapes) -> int | None:
    return next((shapes[name][0] for name in index()[arch].head if shapes.get(name)), None)
