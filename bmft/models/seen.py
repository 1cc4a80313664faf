"""Whether pixels look like those a network was trained on, as its own first normalization layer tells."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bmft._common import Assumption
from bmft.data import GroupedData, Inputs, images_of, map_images, map_tensors, parse_normalization
from bmft.models.answers import called
from bmft.models.modes import evaluating

_MUCH, _OF_FEW = 0.05, 0.3
_ROWS, _AT_ONCE = 128, 8
_TRIED = {
    "--normalize none": "none",
    "--normalize imagenet": "imagenet",
    "--normalize half": "half",
    "--normalize 0/0.00392157 (pixels from 0 to 255)": "0/0.00392157",
}
_SWAPPED = "red and blue exchanged (a --transform can do that)"
_OPTIONS = "--normalize, --resize, --transform"


def unlike_training(
    model: nn.Module, data: GroupedData, place: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> tuple[Assumption, ...]:
    r"""A remark where images do not look like those the network was trained on; nothing is changed.

    A batch normalization layer keeps the mean and the variance of what entered it in training. For the first one that
    runs, these are held against the same figures of up to 128 rows: per channel the squared Hellinger distance of two
    normal distributions, from 0 to 1, and of that the mean over the channels,

    .. math:: 1 - \sqrt{\frac{2\sigma_1\sigma_2}{\sigma_1^2+\sigma_2^2}}
              \exp\left(-\frac{(\mu_1-\mu_2)^2}{4(\sigma_1^2+\sigma_2^2)}\right)

    Measured on a ResNet-18 of HAM10000, two EfficientNets of ImageNet, and small networks on drawn images:

    ==========================================================  ===========
    the right pixels, also at half or four times the size       .000 - .021
    the right pixels of one diagnosis or one part of the body   .011 - .036
    red and blue exchanged: drawn, photographs, skin            .003, .016, .12 - .15
    inverted: drawn, photographs, skin                          .001, .026, .30 - .37
    grey for colour                                             .07 - .17
    another normalization                                       .10 - .45
    normalized twice, half as bright, a 16th as bright          .12 - .65
    pixels from 0 to 255                                        .90 - .98
    other images: skin shown to a network of photographs        .15 - .21
    ==========================================================  ===========

    More than .05 is much. Figures of few rows are uncertain: on HAM10000 at most .29 for one, .14 for two, .08 for
    eight, .03 for sixteen, so that .3 / rows is allowed on top. Channels whose variance in training was next to nothing
    are left out. A network that was fine-tuned with its statistics left as they were is compared with the images before
    that. Networks whose first normalization keeps no statistics (vision transformers, ConvNeXt), and layers that never
    saw any, tell nothing.

    Args:
        model: run up to that layer, in evaluation mode.
        data: rows of images ``(n, channels, height, width)``, and what the model takes beside them; other inputs are
            not looked at.
        place: puts an input where and as the model takes it.
    """
    rows = torch.linspace(0, len(data) - 1, min(_ROWS, len(data))).long()
    inputs = data.inputs(rows)
    images = images_of(inputs)
    if len(images) != 1 or not images[0].is_floating_point():
        return ()
    found = _apart(model, _placed(inputs, place))
    if found is None or found[1] <= (much := _MUCH + _OF_FEW / len(rows)):
        return ()
    layer, apart = found
    better = _better(model, inputs, data, place)
    value = (
        f"they do not look like those the network was trained on, {apart:.2f} apart on a scale to 1 where more than "
        f"{much:.2f} is much{f'; {better} would look right' if better else ''}"
    )
    source = f"what {layer or 'the model'} saw in training against {len(rows)} of the rows"
    return (Assumption("pixels", value, source, _OPTIONS, guess=True),)


def _placed(inputs: Inputs, place: Callable[[Tensor], Tensor]) -> Iterator[Inputs]:
    """A few rows at once, as the model takes them."""
    for start in range(0, len(images_of(inputs)[0]), _AT_ONCE):
        yield map_tensors(partial(_part, slice(start, start + _AT_ONCE), place), inputs)


def _part(rows: slice, place: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    return place(tensor[rows])


def _better(model: nn.Module, inputs: Inputs, data: GroupedData, place: Callable[[Tensor], Tensor]) -> str:
    """What would look right, where one of the usual mistakes explains it."""
    (images,), now = images_of(inputs), data.normalization
    if now is None:
        return ""
    channels, pixels = images.shape[1], (images - now.shift) / now.factor  # from 0 to 255
    tried = {} if channels != 3 else {_SWAPPED: now(pixels.flip(1))}
    own = "/".join(
        ",".join(f"{value / 255:.3g}" for value in figure((0, 2, 3)).clamp_min(0.01).tolist())
        for figure in (pixels.mean, pixels.std)
    )
    for name, text in {**_TRIED, f"--normalize {own} (of these rows themselves)": own}.items():
        if channels == 3 or text != "imagenet":
            tried[name] = parse_normalization(text, channels)(pixels.clone())
    distances = {name: _apart(model, _placed(_with(inputs, made), place)) for name, made in tried.items()}
    best, found = min(distances.items(), key=lambda item: 1.0 if item[1] is None else item[1][1])
    return best if found is not None and found[1] <= _MUCH else ""


def _with(inputs: Inputs, images: Tensor) -> Inputs:
    return map_images(lambda _: images, inputs)


class _Enough(Exception):
    """The layer has been reached."""


@dataclass
class _Moments:
    """Sums over all that enters one layer."""

    several: bool = False
    layer: nn.Module | None = None
    count: int = 0
    sums: list[Tensor] = field(default_factory=lambda: [torch.zeros(()), torch.zeros(())])

    def __call__(self, layer: nn.Module, given: tuple[Any, ...]) -> None:
        """A forward pre-hook."""
        values = given[0].detach().double()  # (n, channels, height, width)
        if values.dim() != 4 and self.several:
            return  # it may look at what stands beside the images
        if self.layer in (None, layer) and values.dim() == 4:
            self.layer = layer
            self.count += values.shape[0] * values.shape[2] * values.shape[3]
            for power in (1, 2):
                self.sums[power - 1] = self.sums[power - 1] + values.pow(power).sum((0, 2, 3)).cpu()
        raise _Enough


def _apart(model: nn.Module, batches: Iterable[Inputs]) -> tuple[str, float] | None:
    """The first normalization layer that runs, and how far what enters it is from what it saw in training."""
    eager = getattr(model, "_orig_mod", model)  # a compiled model's own
    layers = {module: name for name, module in eager.named_modules() if _remembers(module)}
    if not layers:
        return None
    seen = _Moments()
    with ExitStack() as hooks, evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(seen).remove)
        for batch in batches:
            before, seen.several = seen.count, not isinstance(batch, Tensor)
            with suppress(_Enough):
                called(eager, map_tensors(torch.clone, batch))  # a model may change its input in place
            if seen.count == before:
                return None
    if seen.layer is None:
        return None
    mean = seen.sums[0] / seen.count
    variance = (seen.sums[1] / seen.count - mean.square()).clamp_min(0)
    was_mean, was_variance = (seen.layer.get_buffer(f"running_{key}").double().cpu() for key in ("mean", "var"))
    alive = was_variance > 1e-4 * was_variance.max()
    distances = _hellinger(mean, variance, was_mean, was_variance)[alive]
    return (layers[seen.layer], float(distances.mean())) if bool(alive.any()) else None


def _remembers(module: nn.Module) -> bool:
    """Whether a layer normalizes by statistics that training has left in it."""
    mean, variance = (getattr(module, f"running_{key}", None) for key in ("mean", "var"))
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or mean.shape != variance.shape:
        return False
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return False
    return mean.dim() == 1 and not (bool((mean == 0).all()) and bool((variance == 1).all()))


def _hellinger(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> Tensor:
    """Squared Hellinger distance of two normal distributions, elementwise, from 0 to 1.

    >>> _hellinger(torch.zeros(2), torch.ones(2), torch.tensor([0.0, 99.0]), torch.ones(2))
    tensor([0., 1.])
    """
    both = variance + other_variance
    return (
        1 - (2 * (variance * other_variance).sqrt() / both).sqrt() * (-(mean - other_mean).square() / (4 * both)).exp()
    )
