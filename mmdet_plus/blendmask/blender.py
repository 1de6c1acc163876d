"""The blender (section 3.1): bases and attention make masks.

Shape letters: N images, B bases, K instances, M x M attention, R x R masks, H x W an image.
"""

import torch
from mmdet.models.dense_heads.base_mask_head import BaseMaskHead
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi, scale_boxes
from mmdet.structures.mask import mask_target
from mmdet.utils import ConfigType, InstanceList, OptMultiConfig, reduce_mean
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from mmplus_ops import blend_bases

from .thing_semantics import thing_semantics

_LOSS = dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0)


@MODELS.register_module()
class Blender(BaseMaskHead):
    """Masks as sums of bases, pooled from each box and weighted by its attention.

    Args:
        bases: Config of the bottom module, a :class:`ProtoNet`.
        mask_size: R.
        stride: Of the bases, in pixels.
        loss_mask: Loss of a mask's pixels.
        train_cfg: Not used.
        test_cfg: ``mask_thr``, of the probability; ``paste_clipped``: lay the mask over the box
            as it was clipped to the image (the authors' way), not over the box it was predicted
            for.
        init_cfg: Start of the weights.
    """

    def __init__(
        self,
        *,
        bases: ConfigType,
        mask_size: int = 56,
        stride: int = 4,
        loss_mask: ConfigType = _LOSS,
        train_cfg: ConfigType | None = None,
        test_cfg: ConfigType | None = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.bases = MODELS.build(bases)
        self.mask_size = mask_size
        self.stride = stride
        self.loss_mask = MODELS.build(loss_mask)
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg

    def forward(self, x: tuple[Tensor, ...], positive_infos: InstanceList) -> tuple[Tensor, ...]:
        """Blend the masks of all images.

        Args:
            x: Pyramid levels from the finest on, for the bases.
            positive_infos: For each image ``bboxes`` (K, 4), in pixels, and ``attention``
                (K, B, M, M).

        Returns:
            Mask logits (K, R, R), image after image; in training also the thing-semantic logits
            (N, classes + 1, H / 8, W / 8).
        """
        rois = bbox2roi([info.bboxes for info in positive_infos])
        attention = torch.cat([info.attention for info in positive_infos])
        masks = blend_bases(self.bases(x), rois, attention, self.mask_size, 1 / self.stride)
        return (masks, self.bases.semantics(x)) if self.training else (masks,)

    def loss_by_feat(
        self,
        masks: Tensor,
        semantics: Tensor,
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        positive_infos: InstanceList,
        batch_gt_instances_ignore: list[InstanceData | None],
    ) -> dict[str, Tensor]:
        """Compute the mask loss and the thing-semantic loss.

        The mask loss is the binary cross-entropy, averaged over a mask, times the centreness of
        its location, summed over locations, and divided as FCOS's box loss is: by the sum of the
        centreness, averaged over the processes.

        Args:
            masks: (K, R, R) logits on the boxes of the ground truth.
            semantics: (N, classes + 1, H / 8, W / 8) logits.
            batch_gt_instances: ``bboxes``, ``labels``, ``masks`` of each image.
            batch_img_metas: ``batch_input_shape`` of each.
            positive_infos: Of the head: ``gt_index``, ``centerness``.
            batch_gt_instances_ignore: ``masks`` of crowds.

        Returns:
            ``loss_mask``, ``loss_basis_sem``.
        """
        centerness = torch.cat([info.centerness for info in positive_infos])
        total = reduce_mean(centerness.sum().detach()).clamp(min=1e-6)
        if len(masks):
            targets = torch.cat(
                [
                    self.mask_targets(gt)[info.gt_index]
                    for gt, info in zip(batch_gt_instances, positive_infos, strict=True)
                ]
            )
            pixels = self.mask_size**2
            loss = self.loss_mask(
                masks.float().flatten(1),
                targets.flatten(1),
                weight=centerness[:, None].expand(-1, pixels),
                avg_factor=total * pixels,
            )
        else:
            # Tied to the parameters all the same, for training in several processes.
            loss = masks.sum() * 0
        target = torch.stack(
            [
                thing_semantics(
                    gt,
                    crowds,
                    meta["batch_input_shape"],
                    tuple(semantics.shape[-2:]),
                    self.bases.loss_sem.ignore_index,
                )
                for gt, crowds, meta in zip(
                    batch_gt_instances, batch_gt_instances_ignore, batch_img_metas, strict=True
                )
            ]
        )
        return dict(loss_mask=loss, loss_basis_sem=self.bases.loss_sem(semantics, target))

    def mask_targets(self, gt: InstanceData) -> Tensor:
        """Cut the masks of the ground truth from their boxes.

        Args:
            gt: ``bboxes`` (G, 4) and ``masks``, mmdet's.

        Returns:
            (G, R, R) float, 0 or 1.
        """
        index = torch.arange(len(gt), device=gt.bboxes.device)
        return mask_target([gt.bboxes], [index], [gt.masks], ConfigDict(mask_size=self.mask_size))

    def predict_by_feat(
        self,
        masks: Tensor,
        batch_img_metas: list[dict],
        results_list: InstanceList,
        rescale: bool = True,
    ) -> InstanceList:
        """Paste the masks into the images.

        Args:
            masks: (K, R, R) logits, image after image.
            batch_img_metas: ``ori_shape``, ``img_shape``, ``scale_factor`` of each.
            results_list: Of the head, with boxes of the resized images.
            rescale: To the original images, otherwise to the resized ones.

        Returns:
            For each image the results that are not empty once they are clipped to the image:
            ``bboxes`` (K, 4), ``scores``, ``labels`` (K,), ``masks`` (K, H, W) bool.
        """
        counts = [len(results) for results in results_list]
        # In float32, as half precision shifts the edges of masks.
        for results, own in zip(results_list, masks.float().sigmoid().split(counts), strict=True):
            results.pop("attention")
            results.mask_probs = own
        return [
            self._paste(results, meta, rescale)
            for results, meta in zip(results_list, batch_img_metas, strict=True)
        ]

    def _paste(self, results: InstanceData, meta: dict, rescale: bool) -> InstanceData:
        size = meta["ori_shape"] if rescale else meta["img_shape"]
        rows, cols = size[:2]
        whole = results.bboxes
        if rescale:
            whole = scale_boxes(whole, [1 / factor for factor in meta["scale_factor"]])
        clipped = whole.clamp(min=0).minimum(whole.new_tensor([cols, rows, cols, rows]))
        kept = (clipped[:, 2:] > clipped[:, :2]).all(1)
        results.bboxes = clipped
        results, whole = results[kept], whole[kept]
        probs = results.pop("mask_probs")
        boxes = results.bboxes if self.test_cfg.get("paste_clipped", True) else whole
        results.masks = paste_masks(probs, boxes, rows, cols, self.test_cfg.get("mask_thr", 0.5))
        return results


def paste_masks(probs: Tensor, boxes: Tensor, rows: int, cols: int, threshold: float) -> Tensor:
    """Lay masks over their boxes, one after the other, and threshold them.

    Args:
        probs: (K, R, R) in [0, 1].
        boxes: (K, 4) in pixels, of positive sides; they may leave the image.
        rows: H.
        cols: W.
        threshold: A pixel from this probability on belongs to the mask.

    Returns:
        (K, H, W) bool.
    """
    masks = torch.zeros((len(probs), rows, cols), dtype=torch.bool, device=probs.device)
    for mask, prob, box in zip(masks, probs, boxes, strict=True):
        # On a GPU the region would be read back; there the whole image is as fast.
        part, where = _do_paste_mask(
            prob[None, None], box[None], rows, cols, skip_empty=not probs.is_cuda
        )
        mask[where] = part[0] >= threshold
    return masks
