"""Quasi-multitask learning (sections 3.4 and 4.7): masks of another size, in training only."""

from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.utils import InstanceList
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

SCALES = (0.5, 2)


class QuasiMultitaskBranch(FCNMaskHead):
    """The layers of a Mask R-CNN mask branch, for masks of half or twice the size.

    Half: the deconvolution is left out. Twice: there is one more.

    Args:
        scale: 0.5 or 2, the size of its masks against those of the original branch.
        kwargs: As of ``FCNMaskHead``, with ``upsample_cfg`` left to this class.

    Raises:
        ValueError: ``scale`` is neither.
    """

    def __init__(self, scale: float, **kwargs) -> None:
        if scale not in SCALES:
            raise ValueError(f"quasi_multitask must be 0.5 or 2, got {scale!r}")
        kind = dict(type=None) if scale == 0.5 else dict(type="deconv", scale_factor=2)
        super().__init__(upsample_cfg=kind, **kwargs)
        self.scale = scale
        if scale == 2:
            channels = self.conv_out_channels
            self.upsample = nn.Sequential(
                self.upsample, nn.ReLU(), nn.ConvTranspose2d(channels, channels, 2, 2)
            )

    def init_weights(self) -> None:
        super().init_weights()
        for layer in self.upsample or ():
            if isinstance(layer, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def loss_and_target(
        self,
        mask_preds: Tensor,
        sampling_results: list[SamplingResult],
        batch_gt_instances: InstanceList,
        rcnn_train_cfg: ConfigDict,
    ) -> dict:
        """As of ``FCNMaskHead``, with ground truth of this branch's size.

        Args:
            mask_preds: Logits (K, C, scale M, scale M).
            sampling_results: Per image, the sampled RoIs.
            batch_gt_instances: Per image, ground truth with masks.
            rcnn_train_cfg: ``mask_size`` is M, of the original branch, or its height and width.

        Returns:
            ``loss_mask`` with the loss in it, and ``mask_targets``.
        """
        size = tuple(round(side * self.scale) for side in _pair(rcnn_train_cfg["mask_size"]))
        return super().loss_and_target(
            mask_preds,
            sampling_results,
            batch_gt_instances,
            ConfigDict(rcnn_train_cfg, mask_size=size),
        )
