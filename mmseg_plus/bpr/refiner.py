"""Refining the masks of an image: extraction of patches, the network, reassembly.

Shape legend: N masks of an image of H x W pixels, P patches, S the side of the network's input.
"""

import copy
import math
import os
import pickle
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from mmseg.registry import MODELS
from torch import Tensor

from mmplus_ops import crop_patches, extract_boundary_patches, reassemble_patches
from mmseg_plus.common.compat import use_safe_checkpoint_loading
from mmseg_plus.common.config import read_config
from mmseg_plus.common.errors import UserError

from .patch_refiner import BoundaryPatchRefiner
from .refine_backbones import ImageAndMaskConv

#: The refiner that ships with the package; its weights lie beside the config.
DEFAULT_CONFIG = "bpr_hrnetv2-w16t_mixed-128x128"
#: What refining an image consists of; cropping counts as extraction.
PARTS = ("extraction", "network", "reassembly")


class BoundaryRefiner:
    """Refines the boundaries of instance masks, whatever model they come from.

    Args:
        config: Path or name of a config of the zoo; the shipped refiner if None.
        checkpoint: File of its weights, an address that mmengine can load, or None for the weights
            that ship beside the config.
        device: Where the network and the operators run.
        patch_size: Side of the patches in pixels.
        iou_thr: Of the NMS over patches; larger values give more patches and finer masks.
        batch_size: Patches in the network at a time; bounds the memory.
        scheme: ``dense``, ``grid`` or ``instance``.
        padding: Pixels around each patch that the network sees beyond it.
        max_patches: Budget of patches an image; the least certain are refined.
        amp: Run the network in half precision: bfloat16 on a CPU, where only those that compute in
            it gain by that, and float16 on a GPU.
        caution: See :meth:`BoundaryPatchRefiner.refine_patches`; the config's
            ``model.test_cfg.caution`` if None, or else 0.

    Raises:
        UserError: The config or the checkpoint is missing or they do not fit.
    """

    def __init__(
        self,
        config: str | os.PathLike | Config | None = None,
        checkpoint: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
        patch_size: int = 64,
        iou_thr: float = 0.25,
        batch_size: int = 256,
        scheme: str = "dense",
        padding: int = 0,
        max_patches: int | None = None,
        amp: bool = False,
        caution: float | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = load_refiner(config or DEFAULT_CONFIG, checkpoint).to(self.device)
        self._choose(patch_size, iou_thr, scheme, max_patches, batch_size, padding, amp, caution)
        self.input_size = self.model.data_preprocessor.input_size
        #: How many patches the last image had.
        self.num_patches = 0
        #: Seconds that the last image took, by part.
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def _choose(
        self,
        patch_size: int,
        iou_thr: float,
        scheme: str,
        max_patches: int | None,
        batch_size: int,
        padding: int,
        amp: bool,
        caution: float | None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if padding < 0:
            raise ValueError(f"padding must be at least 0, got {padding}")
        self.extraction = dict(
            patch_size=patch_size, iou_thr=iou_thr, scheme=scheme, max_patches=max_patches
        )
        if caution is None:
            caution = (self.model.test_cfg or {}).get("caution", 0.0)
        if not 0 <= caution < math.inf:
            raise ValueError(f"caution must be a number of at least 0, got {caution:g}")
        self.batch_size, self.padding, self.amp = batch_size, padding, amp
        self.caution = caution

    def with_options(self, **options: Any) -> "BoundaryRefiner":
        """The same network, with other options.

        Args:
            options: ``patch_size``, ``iou_thr``, ``scheme``, ``padding``, ``max_patches``,
                ``batch_size``, ``amp`` or ``caution``; what is not given stays.
        """
        other = copy.copy(self)
        now = dict(
            self.extraction,
            batch_size=self.batch_size,
            padding=self.padding,
            amp=self.amp,
            caution=self.caution,
        )
        other._choose(**{**now, **options})
        other.seconds = dict.fromkeys(PARTS, 0.0)
        return other

    @torch.inference_mode()
    def refine(
        self, image: np.ndarray, masks: np.ndarray, probs: np.ndarray | None = None
    ) -> np.ndarray:
        """Refine the masks of one image.

        Args:
            image: (H, W, 3) uint8 BGR.
            masks: (N, H, W) bool.
            probs: (N, H, W) foreground probabilities; with ``max_patches`` they tell which patches
                are the least certain.

        Returns:
            (N, H, W) bool. Pixels under no patch keep the coarse mask.

        Raises:
            ValueError: A shape or type is wrong.
        """
        check_arguments(image, masks, probs)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        picture = torch.from_numpy(np.ascontiguousarray(image)).to(self.device)
        coarse = torch.from_numpy(np.ascontiguousarray(masks)).to(self.device)
        uncertainty = None
        if probs is not None and self.extraction["max_patches"] is not None:
            soft = torch.from_numpy(np.ascontiguousarray(probs)).to(self.device)
            uncertainty = 1 - (2 * soft - 1).abs()
        with self._timed("extraction"):
            boxes, mask_index = extract_boundary_patches(
                coarse, uncertainty=uncertainty, **self.extraction
            )
        self.num_patches = len(boxes)
        refined = coarse.clone()
        for first, last, patches in _groups(mask_index, len(masks), self.batch_size):
            chosen, own = boxes[patches], mask_index[patches] - first
            probabilities = self._refine_patches(picture, coarse[first:last], chosen, own)
            with self._timed("reassembly"):
                refined[first:last] = reassemble_patches(
                    coarse[first:last], chosen, own, probabilities, padding=self.padding
                )
        return refined.cpu().numpy()

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] += time.perf_counter() - start

    def _refine_patches(
        self, image: Tensor, masks: Tensor, boxes: Tensor, mask_index: Tensor
    ) -> Tensor:
        """Foreground probabilities of patches, batch by batch."""
        size = self._patch_shape(boxes)
        probabilities = image.new_empty((len(boxes), *size), dtype=torch.float32)
        for start in range(0, len(boxes), self.batch_size):
            batch = slice(start, start + self.batch_size)
            with self._timed("extraction"):
                images, coarse = crop_patches(
                    image, masks, boxes[batch], mask_index[batch], self.input_size, self.padding
                )
            with self._timed("network"):
                probabilities[batch] = self.run_network(images, coarse, size)
        return probabilities

    def run_network(self, images: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Call :meth:`BoundaryPatchRefiner.refine_patches` in the precision asked for."""
        half = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, half, enabled=self.amp):
            return self.model.refine_patches(images, masks, size, self.caution)

    def _patch_shape(self, boxes: Tensor) -> tuple[int, int]:
        """The size that all padded patches have, or the network's input if they differ."""
        widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        if (widths == widths[0]).all() and (heights == heights[0]).all():
            grown = 2 * self.padding
            return int(heights[0]) + grown, int(widths[0]) + grown
        return self.input_size, self.input_size


def _groups(mask_index: Tensor, num_masks: int, least: int) -> Iterator[tuple[int, int, slice]]:
    """Ranges of masks with their patches, each of at least ``least`` patches where there are more.

    A mask is never split, because its patches are averaged together.
    """
    counts = torch.bincount(mask_index.cpu(), minlength=num_masks).tolist()
    first = start = end = 0
    for index, count in enumerate(counts):
        end += count
        if end - start >= least or (index == num_masks - 1 and end > start):
            yield first, index + 1, slice(start, end)
            first, start = index + 1, end


def check_arguments(image: np.ndarray, masks: np.ndarray, probs: np.ndarray | None) -> None:
    """Raise a ValueError where an array of :meth:`BoundaryRefiner.refine` is of the wrong kind."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image must be (H, W, 3), got {_kind(image)}; grey images need 3 channels"
        )
    if image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 in BGR, 0 to 255, got {_kind(image)}")
    if not isinstance(masks, np.ndarray) or masks.ndim != 3 or masks.dtype != bool:
        raise ValueError(f"masks must be (N, H, W) bool, got {_kind(masks)}; cut soft ones at 0.5")
    if masks.shape[1:] != image.shape[:2]:
        raise ValueError(
            f"masks are {masks.shape[2]} x {masks.shape[1]} pixels, the image is "
            f"{image.shape[1]} x {image.shape[0]} (width x height)"
        )
    if probs is not None and (probs.shape != masks.shape or probs.dtype.kind != "f"):
        raise ValueError(f"probs must be {masks.shape} of floats as the masks, got {_kind(probs)}")


def _kind(array: object) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.shape} of {array.dtype}"
    return type(array).__name__


def load_refiner(
    config: str | os.PathLike | Config,
    checkpoint: str | os.PathLike | None = None,
    fold: bool = True,
) -> BoundaryPatchRefiner:
    """Build a refinement network with its weights, ready for inference.

    Args:
        config: A config, its path or its name in the zoo.
        checkpoint: File or address of the weights; None for the file of the config's name beside
            it.
        fold: Fold batch norm into the convolutions.

    Returns:
        The network in evaluation mode.

    Raises:
        UserError: Something is missing or does not fit.
    """
    cfg = config if isinstance(config, Config) else read_config(os.fspath(config))
    kind = MODELS.get(cfg.model.type) if cfg.get("model") else None
    if not isinstance(kind, type) or not issubclass(kind, BoundaryPatchRefiner):
        raise UserError(
            f"{cfg.filename}: its model is no BoundaryPatchRefiner; give a config of the family bpr"
        )
    path = os.fspath(checkpoint) if checkpoint else _beside(cfg)
    # Whatever scope the program is in, a detector's among them.
    with DefaultScope.overwrite_default_scope("mmseg"), warnings.catch_warnings():
        # mmseg's advice on two classes, and on how it builds its own losses.
        warnings.simplefilter("ignore", UserWarning)
        model = MODELS.build(_plain(cfg.model))
    _load(model, path, cfg.filename or "the config")
    return fuse(model.eval()) if fold else model.eval()


def _plain(model: dict) -> dict:
    """A model's config without what only a training needs: SyncBN and pretrained weights."""
    model = copy.deepcopy(model)
    model.pop("pretrained", None)
    for part in (model.backbone, model.decode_head):
        part.norm_cfg = dict(type="BN")
        part.init_cfg = None
    return model


def _load(model: BoundaryPatchRefiner, path: str, config: str) -> None:
    """Load a checkpoint whose every weight must be the model's and the other way round."""
    use_safe_checkpoint_loading()
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location="cpu", logger="silent")
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such checkpoint file") from error
    except pickle.UnpicklingError as error:
        raise UserError(str(error)) from error
    weights = checkpoint.get("state_dict", checkpoint)
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    own = model.state_dict()
    faults = [f"lacks {name}" for name in own if name not in weights]
    faults += [f"has {name}, which the network has not" for name in weights if name not in own]
    faults += [
        f"{name} is {tuple(weights[name].shape)}, the network's {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(
            f"{path}: these weights are not of {config}: {'; '.join(faults[:3])}{more}; give the "
            "config that they were trained with"
        )
    model.load_state_dict(weights)


@torch.no_grad()
def fuse(model: BoundaryPatchRefiner) -> BoundaryPatchRefiner:
    """Fold the stem's two convolutions into one and batch norms into convolutions, for inference.

    Args:
        model: In evaluation mode; changed in place.

    Returns:
        The model, with the same outputs up to rounding.
    """
    for parent in list(model.backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ImageAndMaskConv):
                setattr(parent, name, child.merged())
    if hasattr(model.backbone, "conv_mask"):
        # Not None: fuse_conv_bn walks over the children.
        model.backbone.conv_mask = torch.nn.Identity()
    return fuse_conv_bn(model)


def _beside(cfg: Config) -> str:
    path = Path(cfg.filename or "").with_suffix(".pth")
    if not cfg.filename or not path.is_file():
        raise UserError(
            f"{cfg.filename or 'the config'}: no weights lie beside this config; give a checkpoint "
            "(--checkpoint)"
        )
    return str(path)
