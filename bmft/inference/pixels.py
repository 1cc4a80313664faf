"""What each model looked at where the decision changed: Captum attributions over the pixels."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from bmft.auditing import Predictions
from bmft.data import GroupedData, Inputs, images_of, map_tensors
from bmft.errors import DataError
from bmft.models import evaluating, forward_logits, positive_first, turned

Map = NDArray[np.float32]
TILE = 160  # pixels: two or three tiles fit a phone's width, and 50 cases stay below a few megabytes
# Orange and blue, apart for every kind of colour vision.
_RAISED, _LOWERED = np.array([230, 97, 0]), np.array([0, 114, 178])
_BLUR = 24  # single pixels of an integrated gradient are noise to the eye: smooth over 1/24 of the side


@dataclass(frozen=True)
class ChangedCase:
    """A sample whose decision changed.

    Attributes:
        index: its position in the predictions and in the data.
        row: its row in the manifest.
        attribute: the attribute it was picked for.
        group: its group of that attribute.
        column: the column of scores that changed most.
        num_columns: how many there are.
        label: the name of that column's class or label.
        target: 0 or 1, or -1 where the label is not known.
        score_before: its probability by the model before.
        score_after: and by the model after.
    """

    index: int
    row: int
    attribute: str
    group: str
    column: int
    num_columns: int
    label: str
    target: int
    score_before: float
    score_after: float


@dataclass(frozen=True)
class Explanation:
    """A case and its picture: image, attribution before, attribution after, side by side."""

    case: ChangedCase
    png: bytes

    @property
    def text(self) -> str:
        """The case in one sentence."""
        case = self.case
        said = {1: "labelled", 0: "not labelled"}.get(case.target, "not known to be labelled")
        return (
            f"{case.attribute} = {case.group}, row {case.row}, {said} {case.label}: "
            f"score {case.score_before:.2f} before, {case.score_after:.2f} after."
        )


def changed_cases(
    before: Predictions,
    after: Predictions,
    *,
    threshold: float = 0.5,
    after_at: float | None = None,
    per_group: int = 2,
) -> list[ChangedCase]:
    """Per attribute and group, the samples whose decision changed and whose score moved most.

    Both must be of the same rows; the second is cut at `after_at`, by default where the first is. A group without a
    changed decision has no case.

    Raises:
        DataError: the two are of different rows or columns.
    """
    if before.scores.shape != after.scores.shape or not np.array_equal(before.rows, after.rows):
        raise DataError("before and after are predictions of different rows: predict the same data with both models.")
    other = threshold if after_at is None else after_at
    changed = before.decisions(threshold) != after.decisions(other)  # (n, K)
    moved = np.where(changed, np.abs(after.scores - before.scores), 0)
    found = []
    for place, attribute in enumerate(before.attributes):
        for group, name in enumerate(attribute.groups):
            members = np.flatnonzero((before.groups[:, place] == group) & changed.any(1))
            most = members[np.argsort(-moved[members].max(1, initial=0), kind="stable")[:per_group]]
            found += [_case(before, after, int(i), int(moved[i].argmax()), attribute.name, name) for i in most]
    return found


def _case(before: Predictions, after: Predictions, index: int, column: int, attribute: str, group: str) -> ChangedCase:
    columns = before.scores.shape[1]
    return ChangedCase(
        index=index,
        row=int(before.rows[index]),
        attribute=attribute,
        group=group,
        column=column,
        num_columns=columns,
        label=before.columns[column],
        target=int(before.targets[index, column]),
        score_before=float(before.scores[index, column]),
        score_after=float(after.scores[index, column]),
    )


def explain_cases(
    model_before: nn.Module, model_after: nn.Module, data: GroupedData, cases: Sequence[ChangedCase], *, steps: int = 25
) -> list[Explanation]:
    """Attribute each case's logit to its pixels, by both models, on one scale.

    Integrated Gradients (Sundararajan 2017) goes from the mean image (0 after normalization) to the image and
    is smoothed for the eye. Both models are left as they were.

    Args:
        model_before: the original.
        model_after: the new one, of the same architecture.
        data: what `cases` were found on, in the same order.
        cases: from `changed_cases`.
        steps: of the integral.

    Raises:
        DataError: `data` is of other rows, or its inputs are no images.
    """
    return [_explain((model_before, model_after), data, case, steps) for case in cases]


def _inputs(data: GroupedData, case: ChangedCase) -> Inputs:
    if case.index >= len(data) or int(data.rows[case.index]) != case.row:
        raise DataError(
            f"case of row {case.row} is not at place {case.index} of this data: give the data it was found on."
        )
    inputs = data.inputs(slice(case.index, case.index + 1))
    if len(images_of(inputs)) != 1:
        raise DataError("pixel attributions need images: inputs of shape (n, channels, height, width).")
    return inputs


def _explain(models: Sequence[nn.Module], data: GroupedData, case: ChangedCase, steps: int) -> Explanation:
    maps, inputs = [], _inputs(data, case)
    for model in models:
        with evaluating(model):
            maps.append(
                _integrated_gradients(model, _logit_of(model, case, positive_first(model, data)), inputs, steps)
            )
    return Explanation(case, _picture(images_of(inputs)[0][0], maps))


def _logit_of(model: nn.Module, case: ChangedCase, reverse: bool) -> Callable[[Inputs], Tensor]:
    def forward(inputs: Inputs) -> Tensor:
        logits = forward_logits(model, inputs)  # (n, outputs)
        logits = turned(logits) if reverse else logits
        if case.num_columns == 1 and logits.shape[1] == 2:
            return logits[:, 1] - logits[:, 0]
        return logits[:, case.column]

    return forward


def _integrated_gradients(model: nn.Module, forward: Callable[[Inputs], Tensor], inputs: Inputs, steps: int) -> Map:
    # A second, for what few runs ask for.
    from captum.attr import IntegratedGradients
    from scipy.ndimage import gaussian_filter

    weight = next(model.parameters())
    (image,) = images_of(inputs)
    placed = image.to(weight.device, weight.dtype).requires_grad_()

    def of_images(images: Tensor) -> Tensor:
        # What stands beside the image is the same at every step of the path.
        return forward(map_tensors(partial(_beside, images), inputs))

    found = IntegratedGradients(of_images).attribute(placed, n_steps=steps, internal_batch_size=32)
    raw = found.detach().sum(1)[0].float().cpu().numpy()  # (height, width)
    return np.asarray(gaussian_filter(raw, sigma=max(raw.shape) / _BLUR), dtype=np.float32)


def _beside(images: Tensor, tensor: Tensor) -> Tensor:
    """The images themselves, or what stands beside one of them for all of these."""
    if tensor.dim() == 4:
        return images
    kind = images.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(images.device, kind).expand(len(images), *tensor.shape[1:])


def _picture(image: Tensor, maps: Sequence[Map]) -> bytes:
    """Image and overlays side by side as a small PNG; both maps on the scale of the stronger one."""
    grey, shown = _visible(image)
    scale = max(float(np.quantile(np.abs(values), 0.99)) for values in maps) or 1.0
    tiles = [_tile(shown), *(_tile(_overlay(grey, values / scale)) for values in maps)]
    rule = np.full((TILE, 3, 3), 128, dtype=np.uint8)
    strip = Image.fromarray(np.concatenate([tiles[0], *(part for tile in tiles[1:] for part in (rule, tile))], axis=1))
    # The colours are chosen on every ninth pixel, in a tenth of the time.
    colours = strip.reduce(3).quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    strip.quantize(palette=colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _visible(image: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A normalized image stretched to 0..255, in grey and in colour: ``(height, width, 3)`` each."""
    values = image.detach().float().cpu().numpy()
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-12) * 255
    color = np.moveaxis(values if len(values) == 3 else np.repeat(values[:1], 3, axis=0), 0, 2)
    grey = np.repeat(color.mean(2, keepdims=True), 3, axis=2)
    return grey, color


def _overlay(grey: NDArray[np.float32], values: Map) -> NDArray[np.float32]:
    strength = np.clip(np.abs(values), 0, 1)[..., None] ** 0.8 * 0.9
    color = np.where(values[..., None] > 0, _RAISED, _LOWERED)
    return np.asarray(grey * (1 - strength) + color * strength, dtype=np.float32)


def _tile(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    picture = Image.fromarray(values.round().astype(np.uint8))
    return np.asarray(picture.resize((TILE, TILE), Image.Resampling.BICUBIC))
