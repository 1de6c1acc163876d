"""The mask branch of MaskPlus.

RoI features -> 4 convolutions -> (deconvolutional pyramid) -> deconvolution -> logits
             |                                               -> (boundary refinement) -> masks
             -> (quasi-multitask branch, in training) -> masks of another size
"""

from typing import Any, Literal

from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS
from mmdet.utils import InstanceList
from mmengine.config import ConfigDict
from torch import Tensor, nn

from .boundary_refinement import build_boundary_refinement
from .deconv_pyramid import DeconvPyramid
from .quasi_multitask import QuasiMultitaskBranch

_BRANCH = "quasi_branch."


@MODELS.register_module()
class MaskPlusHead(FCNMaskHead):
    """``FCNMaskHead`` with three of the techniques, each of which may be off.

    With all of them off it is ``FCNMaskHead``, bit for bit. Weights of an ``FCNMaskHead`` load into
    any variant and give the same masks before training.

    Args:
        deconv_pyramid: Whether :class:`DeconvPyramid` follows the convolutions.
        boundary_refinement: 'improved' (:class:`ImprovedBoundaryRefinement`), 'gcn'
            (:class:`GCNBoundaryRefinement`) or None.
        quasi_multitask: 0.5 or 2 for a :class:`QuasiMultitaskBranch`, or None. Its loss is
            ``loss_mask_quasi``. Weights need not hold it, and a head without it passes over the
            branch's weights.
        quasi_loss_weight: Weight of that loss (the paper is silent).
        kwargs: Those of ``FCNMaskHead``.

    Raises:
        ValueError: A switch has no such setting.
    """

    def __init__(
        self,
        *,
        deconv_pyramid: bool = False,
        boundary_refinement: Literal["improved", "gcn"] | None = None,
        quasi_multitask: float | None = None,
        quasi_loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if deconv_pyramid and not self.num_convs:
            raise ValueError("deconv_pyramid follows the convolutions: num_convs must not be 0")
        if quasi_multitask and (self.upsample is None or self.scale_factor != 2):
            raise ValueError(
                "quasi_multitask halves or doubles masks of twice the RoI features' size: "
                "upsample_cfg must enlarge them by 2"
            )
        self.deconv_pyramid = DeconvPyramid(self.conv_out_channels) if deconv_pyramid else None
        self.boundary_refinement = (
            build_boundary_refinement(boundary_refinement, self.conv_logits.out_channels)
            if boundary_refinement
            else None
        )
        self.quasi_branch = (
            QuasiMultitaskBranch(quasi_multitask, **_layers(kwargs)) if quasi_multitask else None
        )
        self.quasi_loss_weight = quasi_loss_weight
        self.register_load_state_dict_post_hook(_forget_missing_branch)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Predict masks.

        Args:
            x: RoI features (K, in_channels, 14, 14).

        Returns:
            Logits (K, C, 28, 28); in training with a quasi-multitask branch, its logits after
            them, for :meth:`loss_and_target`.
        """
        features = x
        for conv in self.convs:
            features = conv(features)
        mask_preds = self.predict_logits(features)
        if self.training and self.quasi_branch is not None:
            return mask_preds, self.quasi_branch(x)
        return mask_preds

    def predict_logits(self, features: Tensor) -> Tensor:
        """Logits (K, C, 28, 28) from what the last convolution gave, (K, channels, 14, 14)."""
        if self.deconv_pyramid is not None:
            features = self.deconv_pyramid(features)
        if self.upsample is not None:
            features = self.upsample(features)
            if self.upsample_method == "deconv":
                features = self.relu(features)
        mask_preds = self.conv_logits(features)
        if self.boundary_refinement is not None:
            mask_preds = self.boundary_refinement(mask_preds)
        return mask_preds

    def loss_and_target(
        self,
        mask_preds: Tensor | tuple[Tensor, Tensor],
        sampling_results: list[SamplingResult],
        batch_gt_instances: InstanceList,
        rcnn_train_cfg: ConfigDict,
    ) -> dict:
        """As of ``FCNMaskHead``; with a quasi-multitask branch there is ``loss_mask_quasi`` too.

        Args:
            mask_preds: What :meth:`forward` gave.
            sampling_results: Per image, the sampled RoIs.
            batch_gt_instances: Per image, ground truth with masks.
            rcnn_train_cfg: With ``mask_size``.

        Returns:
            ``loss_mask`` with the losses in it, and ``mask_targets`` of the original branch.
        """
        arguments = (sampling_results, batch_gt_instances, rcnn_train_cfg)
        if not isinstance(mask_preds, tuple):
            return super().loss_and_target(mask_preds, *arguments)
        original, quasi = mask_preds
        result = super().loss_and_target(original, *arguments)
        other = self.quasi_branch.loss_and_target(quasi, *arguments)["loss_mask"]["loss_mask"]
        result["loss_mask"]["loss_mask_quasi"] = self.quasi_loss_weight * other
        return result

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        if self.quasi_branch is None:
            for name in [name for name in state_dict if name.startswith(prefix + _BRANCH)]:
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)


def _layers(config: dict) -> dict:
    """What the quasi-multitask branch shares with the original one: all but the upsampling."""
    return {key: value for key, value in config.items() if key != "upsample_cfg"}


def _forget_missing_branch(head: nn.Module, keys: Any) -> None:
    """The branch is scaffolding: weights without it are whole."""
    keys.missing_keys[:] = [name for name in keys.missing_keys if f".{_BRANCH}" not in f".{name}"]
