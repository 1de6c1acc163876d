"""Boundary patches as a data set: from a patch store, or straight from images and coarse masks.

Shape legend: H and W an image's size, S a patch's side, in pixels.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import FUNCTIONS
from mmseg.registry import DATASETS

from mmplus_ops import extract_boundary_patches
from mmseg_plus.common.errors import UserError

from .coarse_masks import KINDS, degrade
from .instances import InstanceSource
from .patches import crop_training_patches, match
from .sources_coco import CocoGroundTruth, CocoResults


@DATASETS.register_module()
class BoundaryPatchDataset(BaseDataset):
    """Patches along the boundaries of coarse masks, with the ground truth as their target.

    Three ways to the coarse masks:

    - ``store``: patches that ``tools/bpr_patches.py`` has written; an item is one patch.
    - ``coarse``: results of a segmenter on the images of ``ann_file``. Each instance is trained
      towards the ground truth of its class that it covers best, if their IoU is above ``min_iou``.
    - neither: coarse masks are made from the ground truth, anew each time an image comes up
      (``degrade``).

    The last two read images and masks as they are needed, nothing is written, and an item is a
    list of up to ``patches_per_image`` patches of one image, because reading the image costs more
    than cutting patches out of it. :func:`collate_patches` makes one batch of patches of them, so
    that a batch holds ``batch_size * patches_per_image``.

    Args:
        ann_file: COCO instances file.
        store: File of a patch store, instead of ``ann_file``; relative to ``data_root``, too.
        coarse: Results on the images of ``ann_file``, a COCO JSON. Where other programs wrote it,
            so not relative to ``data_root``.
        degrade: Ways in which coarse masks are made from the ground truth, see
            :mod:`mmseg_plus.bpr.coarse_masks`.
        min_iou: Least IoU of a coarse mask and its ground truth, in [0, 1).
        patch_size: Side of the patches in pixels.
        iou_thr: Of the NMS over patches.
        scheme: ``dense``, ``grid`` or ``instance``.
        padding: Pixels around each patch.
        patches_per_image: At most; 0 for all of them.
        instances_per_image: Whose boundaries are looked at, at most; 0 for all of them.
        even_instances: Where an image has more than ``patches_per_image``, draw them so that
            instances count alike, as they do in AP, and not by the length of their boundaries. A
            store's patches are what they are.
        kwargs: :class:`mmengine.dataset.BaseDataset`'s. ``data_prefix=dict(img=...)`` is the
            folder of the images. In ``test_mode`` an image gives the same patches every time.

    Raises:
        UserError: A file is missing or a record of it wrong.
    """

    METAINFO = dict(classes=("background", "foreground"), palette=[(0, 0, 0), (255, 255, 255)])

    def __init__(
        self,
        ann_file: str = "",
        *,
        store: str | None = None,
        coarse: str | None = None,
        degrade: Sequence[str] = KINDS,
        min_iou: float = 0.5,
        patch_size: int = 64,
        iou_thr: float = 0.25,
        scheme: str = "dense",
        padding: int = 0,
        patches_per_image: int = 8,
        instances_per_image: int = 16,
        even_instances: bool = False,
        data_prefix: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if bool(store) == bool(ann_file):
            raise UserError("BoundaryPatchDataset: give either `store` or `ann_file`")
        self.store, self.coarse = store, coarse
        self.degrade, self.min_iou = tuple(degrade), min_iou
        self.extraction = dict(patch_size=patch_size, iou_thr=iou_thr, scheme=scheme)
        self.padding = padding
        self.patches_per_image = patches_per_image
        self.instances_per_image = instances_per_image
        self.even_instances = even_instances
        super().__init__(ann_file, data_prefix=data_prefix or dict(img=""), **kwargs)

    def _join_prefix(self) -> None:
        super()._join_prefix()
        if self.store:
            self.store = os.path.join(self.data_root, self.store)

    def load_data_list(self) -> list[dict]:
        """One entry a patch of the store, or one an image that has instances."""
        if self.store:
            from .patch_store import PatchStore

            self._patches = PatchStore(self.store)
            return [dict(index=index) for index in range(len(self._patches))]
        folder = self.data_prefix["img"]
        self._truth: InstanceSource = CocoGroundTruth(self.ann_file, folder)
        self._results: InstanceSource | None = None
        if self.coarse:
            self._results = CocoResults(self.coarse, self.ann_file, folder)
        sources = [source for source in (self._truth, self._results) if source is not None]
        return [
            dict(index=index)
            for index in range(len(self._truth))
            if all(source.count(index) for source in sources)
        ]

    def prepare_data(self, idx: int) -> Any:
        """Load one patch of a store, or patches of one image; None if it has none."""
        index = self.get_data_info(idx)["index"]
        if self.store:
            return self.pipeline(self._fields(**self._patches[index]))
        seed = (0, index) if self.test_mode else np.random.randint(2**31)
        patches = self._patches_of_image(index, np.random.default_rng(seed))
        items = [self.pipeline(patch) for patch in patches]
        items = [item for item in items if item is not None]
        # In a test an image without a patch is left out of its batch.
        return items if items or self.test_mode else None

    def _patches_of_image(self, index: int, rng: np.random.Generator) -> list[dict]:
        truth = self._truth[index]
        coarse, target = self._pairs(index, truth, rng)
        if not len(coarse):
            return []
        image = truth.read_image()
        boxes, mask_index = extract_boundary_patches(torch.from_numpy(coarse), **self.extraction)
        if self.patches_per_image and len(boxes) > self.patches_per_image:
            share = None
            if self.even_instances:
                share = 1 / torch.bincount(mask_index)[mask_index].numpy()
                share /= share.sum()
            chosen = rng.choice(len(boxes), self.patches_per_image, replace=False, p=share)
            chosen.sort()
            boxes, mask_index = boxes[chosen], mask_index[chosen]
        patches = crop_training_patches(image, coarse, target, boxes, mask_index, self.padding)
        return [
            self._fields(patch, coarse_patch, target_patch, truth.image_path)
            for patch, coarse_patch, target_patch in patches
        ]

    def _pairs(
        self, index: int, truth: Any, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coarse masks and their ground truth, both (N, H, W) bool."""
        if self._results is None:
            usable = np.flatnonzero(~truth.crowd & truth.masks.any(axis=(1, 2)))
            target = truth.masks[self._some(usable, rng)]
            coarse = [degrade(mask, rng, self.degrade, self.min_iou) for mask in target]
            return np.array(coarse, bool).reshape(target.shape), target
        results = self._results[index]
        matched = match(
            results.masks, results.labels, truth.masks, truth.labels, truth.crowd, self.min_iou
        )
        chosen = self._some(np.flatnonzero(matched >= 0), rng)
        return results.masks[chosen], truth.masks[matched[chosen]]

    def _some(self, candidates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.instances_per_image or len(candidates) <= self.instances_per_image:
            return candidates
        return np.sort(rng.choice(candidates, self.instances_per_image, replace=False))

    def _fields(
        self,
        image: np.ndarray,
        coarse: np.ndarray,
        target: np.ndarray,
        img_path: str = "",
        **_: Any,
    ) -> dict:
        """What the transforms of mmseg expect."""
        height, width = image.shape[:2]
        return dict(
            img=image,
            coarse_mask=coarse,
            gt_seg_map=target,
            seg_fields=["gt_seg_map", "coarse_mask"],
            img_path=str(img_path),
            img_shape=(height, width),
            ori_shape=(height, width),
            reduce_zero_label=False,
        )


@FUNCTIONS.register_module()
def collate_patches(batch: Sequence) -> Any:
    """Collate items that are patches or lists of patches into one batch of patches."""
    patches = []
    for item in batch:
        patches.extend(item if isinstance(item, list) else [item])
    return pseudo_collate(patches)
