"""Pictures of how masks come about: bases, attention, and what is blended from them.

Shape letters: N images, B bases, K instances, M x M attention, R x R masks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch.nn.functional as F
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_plus.visualization import picture_grid, write_png

from .blender import Blender


class Blending(NamedTuple):
    """What one image's masks were made of.

    Attributes:
        bases: (B, H, W), padding included.
        boxes: (K, 4) in pixels of the network's input.
        attention: (K, B, M, M) logits.
        masks: (K, R, R) logits.
        stride: Of the bases, in pixels.
    """

    bases: Tensor
    boxes: Tensor
    attention: Tensor
    masks: Tensor
    stride: int = 4


@HOOKS.register_module()
class BlendingVisualizationHook(Hook):
    """Draws bases, attention and blended masks of tested images, after the paper's figures.

    A picture has a row for the image with its bases, each scaled to its own range, and a row for
    each of the surest instances: the image in its box, the share that each base has in each pixel
    (the softmax over the bases), and the mask's probability.

    Args:
        out_dir: Folder of the pictures; below the runner's working folder unless absolute.
        interval: Batches from one picture to the next.
        max_images: Pictures at most, of the first image of a batch each.
        max_instances: Rows of instances in a picture at most.
    """

    priority = "NORMAL"

    def __init__(
        self,
        out_dir: str = "blending",
        interval: int = 1,
        max_images: int = 16,
        max_instances: int = 6,
    ) -> None:
        if min(interval, max_images, max_instances) < 1:
            raise ValueError("interval, max_images and max_instances must be at least 1")
        self.out_dir = out_dir
        self.interval = interval
        self.max_images = max_images
        self.max_instances = max_instances
        self._handles: list[Any] = []
        self._seen: dict[str, Any] = {}
        self._drawn = 0

    def before_test(self, runner: Runner) -> None:
        """Look over the blender's shoulder."""
        if not is_main_process():
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        blender = find_blender(model)
        self._drawn = 0
        self._handles = [
            blender.bases.register_forward_hook(self._see_bases),
            blender.register_forward_hook(self._see_masks, with_kwargs=True),
        ]

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Draw the first image of every so many batches."""
        seen, self._seen = self._seen, {}
        if not seen or batch_idx % self.interval or self._drawn >= self.max_images:
            return
        image = data_batch["inputs"][0]
        picture = draw_blending(
            image.permute(1, 2, 0).cpu().numpy(),
            Blending(**seen),
            self.max_instances,
        )
        # A path that is absolute stays as it is.
        folder = Path(runner.work_dir) / self.out_dir
        name = Path(outputs[0].metainfo.get("img_path", f"{batch_idx}")).stem
        write_png(folder / f"{name}.png", picture)
        self._drawn += 1

    def after_test(self, runner: Runner) -> None:
        """Let go of the model."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._seen = [], {}

    def _see_bases(self, module: nn.Module, inputs: tuple, bases: Tensor) -> None:
        self._seen["bases"] = bases[0]

    def _see_masks(self, module: Blender, inputs: tuple, kwargs: dict, outputs: tuple) -> None:
        infos: list[InstanceData] = kwargs.get("positive_infos") or inputs[1]
        first = infos[0]
        self._seen.update(
            boxes=first.bboxes,
            attention=first.attention,
            masks=outputs[0][: len(first)],
            stride=module.stride,
        )


def find_blender(model: nn.Module) -> Blender:
    """Return a model's blender.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, Blender):
            return module
    raise ValueError("BlendingVisualizationHook: the model has no Blender; it is for BlendMask")


def draw_blending(image: np.ndarray, blending: Blending, max_instances: int = 6) -> np.ndarray:
    """Draw how the masks of an image come about.

    Args:
        image: (H, W, 3) uint8 BGR, as the network was given it.
        blending: Its instances by falling score.
        max_instances: Rows of instances at most.

    Returns:
        A picture, uint8 BGR.
    """
    height, width = image.shape[:2]
    bases = blending.bases.float()
    bases = F.interpolate(
        bases[None], scale_factor=blending.stride, mode="bilinear", align_corners=False
    )
    bases = bases[0, :, :height, :width].cpu().numpy()
    low, high = bases.min(axis=(1, 2), keepdims=True), bases.max(axis=(1, 2), keepdims=True)
    maps = (bases - low) / np.maximum(high - low, 1e-6)
    count = len(maps)
    rows = [[image, *(heat(m) for m in maps), np.full_like(image, 255)]]
    side = blending.masks.shape[-1]
    shares = F.interpolate(
        blending.attention[:max_instances].float(),
        (side, side),
        mode="bilinear",
        align_corners=False,
    ).softmax(1)
    probabilities = blending.masks[:max_instances].float().sigmoid()
    for box, share, mask in zip(blending.boxes.tolist(), shares, probabilities, strict=False):
        cells = [cut_out(image, box), *(heat(s) for s in share.cpu().numpy())]
        cells.append(heat(mask.cpu().numpy()))
        rows.append([_enlarged(cell, 2 * side) for cell in cells])
    return picture_grid(rows, ["image", *(f"base {b + 1}" for b in range(count)), "mask"])


def heat(values: np.ndarray) -> np.ndarray:
    """Colour values (H, W) in [0, 1], dark for 0: (H, W, 3) uint8 BGR."""
    return cv2.applyColorMap((255 * values.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_VIRIDIS)


def cut_out(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Cut a box (x1, y1, x2, y2) out of an image; beyond its border all is black."""
    x1, y1 = (int(np.floor(v)) for v in box[:2])
    x2, y2 = (max(int(np.ceil(v)), low + 1) for v, low in zip(box[2:], (x1, y1), strict=True))
    height, width = image.shape[:2]
    inside = image[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    if not inside.size:
        return np.zeros((1, 1, 3), np.uint8)
    around = (max(-y1, 0), max(y2 - height, 0), max(-x1, 0), max(x2 - width, 0))
    return cv2.copyMakeBorder(inside, *around, cv2.BORDER_CONSTANT)


def _enlarged(picture: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_NEAREST)
