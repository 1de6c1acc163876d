"""The semantic branch of REFINE: Panoptic-FPN's, over the classes of both tasks.

Shape letters: N images, C = C_ins + C_sem classes of things and stuff, H x W the network's input.
"""

import torch
import torch.nn.functional as F
from mmdet.models.seg_heads import PanopticFPNHead
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType
from torch import Tensor, nn

_LOSS = dict(type="CrossEntropyLoss", ignore_index=255, avg_non_ignore=True, loss_weight=0.5)


@MODELS.register_module()
class ProjectionSemanticHead(PanopticFPNHead):
    """H_sem: F_sem, and the first semantic prediction P_sem^(0) from it (Eq. 1).

    It tells all things apart, too: class c of the things is channel c, stuff class s is channel
    C_ins + s. F_sem has 256 channels, for it is added to the features of instances.

    Args:
        num_things_classes: C_ins.
        num_stuff_classes: C_sem.
        inner_channels: Channels of F_sem.
        loss_seg: Its ``ignore_index`` marks pixels without a label.
        kwargs: Of :class:`PanopticFPNHead`.
    """

    def __init__(
        self,
        num_things_classes: int = 80,
        num_stuff_classes: int = 53,
        *,
        inner_channels: int = 256,
        loss_seg: ConfigType = _LOSS,
        **kwargs,
    ) -> None:
        super().__init__(
            num_things_classes=num_things_classes,
            num_stuff_classes=num_stuff_classes,
            inner_channels=inner_channels,
            loss_seg=loss_seg,
            **kwargs,
        )
        self.num_classes = num_things_classes + num_stuff_classes
        self.conv_logits = nn.Conv2d(inner_channels, self.num_classes, 1)

    def _set_things_to_void(self, gt_semantic_seg: Tensor) -> Tensor:
        """Leave the labels as they are; what is beyond the classes is ignored."""
        labels = gt_semantic_seg.long()
        return labels.masked_fill(labels >= self.num_classes, self.loss_seg.ignore_index)

    def loss(self, x: tuple[Tensor, ...], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Loss of P_sem^(0) alone.

        Args:
            x: Feature maps of strides 4, 8, ...
            batch_data_samples: With ``gt_sem_seg``.

        Returns:
            ``loss_seg``.
        """
        return dict(loss_seg=self.loss_by_feat(self(x)["seg_preds"], batch_data_samples))

    def loss_by_feat(self, seg_preds: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Loss of one semantic prediction.

        Args:
            seg_preds: Logits (N, C, H / 4, W / 4).
            batch_data_samples: With ``gt_sem_seg.sem_seg`` (1, H, W): things 0 to C_ins - 1, then
                stuff; what is beyond is ignored.

        Returns:
            A scalar, weighted.
        """
        labels = self.targets(batch_data_samples, seg_preds.shape[-2:])
        return self.loss_seg(seg_preds.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten())

    def targets(self, batch_data_samples: SampleList, size: tuple[int, int]) -> Tensor:
        """What the semantics are to name: the true labels, shrunk to them as mmdet does.

        Args:
            batch_data_samples: As of :meth:`loss_by_feat`.
            size: Rows and columns of the prediction.

        Returns:
            (N, rows, columns) int64: classes, and ``ignore_index`` where there is no label.
        """
        labels = torch.stack([sample.gt_sem_seg.sem_seg for sample in batch_data_samples])
        return self._set_things_to_void(F.interpolate(labels.float(), size, mode="nearest"))[:, 0]

    def predict(
        self, x: tuple[Tensor, ...], batch_img_metas: list[dict], rescale: bool = False
    ) -> list[Tensor]:
        """P_sem^(0) of each image; arguments and results as of :meth:`predict_by_feat`."""
        return self.predict_by_feat(self(x)["seg_preds"], batch_img_metas, rescale)

    def predict_by_feat(
        self, seg_preds: Tensor, batch_img_metas: list[dict], rescale: bool = False
    ) -> list[Tensor]:
        """Enlarge a semantic prediction to the images.

        Args:
            seg_preds: Logits (N, C, H / 4, W / 4).
            batch_img_metas: With ``batch_input_shape``, ``img_shape`` and ``ori_shape``.
            rescale: To the original images, otherwise to the network's input.

        Returns:
            Per image, logits (C, rows, columns).
        """
        size = batch_img_metas[0]["batch_input_shape"]
        enlarged = []
        # One by one: all classes at the size of an image are hundreds of megabytes.
        for one, meta in zip(seg_preds[:, None], batch_img_metas, strict=True):
            whole = F.interpolate(one, size, mode="bilinear", align_corners=False)
            if rescale:
                rows, cols = meta["img_shape"][:2]
                whole = F.interpolate(
                    whole[..., :rows, :cols],
                    meta["ori_shape"][:2],
                    mode="bilinear",
                    align_corners=False,
                )
            enlarged.append(whole[0])
        return enlarged
