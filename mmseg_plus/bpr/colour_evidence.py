"""What colour alone says of a pixel: is it more like what lies inside of the mask, or outside?

Not in the paper. Its network learns to compare colours across a boundary from millions of patches;
a small one that sees some hundred thousand does not, and is told instead.

Shape legend: B patches, C colour channels, S the side of the network's input in pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Sides of the windows, in cells of 4 x 4 pixels.
WINDOWS = (3, 9)
_CELL = 4


def colour_evidence(images: Tensor, masks: Tensor, windows: Sequence[int] = WINDOWS) -> Tensor:
    """Compare each pixel with the mean colours of fore- and background around it.

    With squared distances f to the mean colour of the coarse mask's pixels in a window around the
    pixel, and b to that of all others there, the evidence is (b - f) / (b + f). The means are
    taken over cells of 4 x 4 pixels and interpolated.

    Args:
        images: (B, C, S, S), S a multiple of 4; colours of about unit variance.
        masks: (B, 1, S, S) in [0, 1].
        windows: Odd sides of square windows, in cells.

    Returns:
        (B, len(windows), S, S) in [-1, 1]; 0 where a window holds fore- or background alone.
    """
    parts = torch.cat([images * masks, masks, images * (1 - masks), 1 - masks], dim=1)
    cells = F.avg_pool2d(parts, _CELL)
    evidence = []
    for window in windows:
        sums = F.avg_pool2d(cells, window, stride=1, padding=window // 2)
        inside, outside = (
            sums[:, at : at + images.shape[1] + 1] for at in (0, images.shape[1] + 1)
        )
        # Less than a pixel of the smallest window is no colour to compare with.
        known = torch.minimum(inside[:, -1:], outside[:, -1:]) > 1e-3
        means = [part[:, :-1] / part[:, -1:].clamp(min=1e-3) for part in (inside, outside)]
        means = F.interpolate(torch.cat([*means, known.to(images)], 1), scale_factor=_CELL)
        channels = images.shape[1]
        fore = (images - means[:, :channels]).square().sum(1, keepdim=True)
        back = (images - means[:, channels : 2 * channels]).square().sum(1, keepdim=True)
        evidence.append((back - fore) / (back + fore + 1e-3) * means[:, -1:])
    return torch.cat(evidence, dim=1)
