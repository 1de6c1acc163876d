"""The RoI heads of MaskPlus (Mask R-CNN) and MaskPlus+ (Cascade Mask R-CNN)."""

from collections.abc import Sequence
from typing import Any, Literal

from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import InstanceList
from mmengine.config import ConfigDict
from torch import Tensor, nn

from .contextual_fusion import FILTERS, ContextualFusionExtractor

Features = tuple[Tensor, ...]


class MaskPlusMixin:
    """Puts the techniques into the mask branch, or branches, of the RoI head that it precedes.

    It changes the configs of ``mask_head`` and ``mask_roi_extractor`` before they are built, and
    appends the features of the whole images to the feature maps.

    Args:
        contextual_fusion: Filters of the convolutions, True for those of the best row of Table 1,
            or None for no :class:`ContextualFusion`.
        deconv_pyramid: As of :class:`MaskPlusHead`, as are the next two.
        boundary_refinement: 'improved', 'gcn' or None.
        quasi_multitask: 0.5, 2 or None. A head built without ``train_cfg``, which cannot train,
            gets no such branch.
        mask_head: Config of an ``FCNMaskHead`` or :class:`MaskPlusHead`, or one for each stage.
        mask_roi_extractor: Config of a ``SingleRoIExtractor``, or one for each stage; contextual
            fusion needs it.
        kwargs: Those of the RoI head.

    Raises:
        ValueError: The mask head or its extractor is of another kind, or fusion is on and boxes
            are pooled from more levels than masks.
    """

    def __init__(
        self,
        *,
        contextual_fusion: Sequence[int] | bool | None = None,
        deconv_pyramid: bool = False,
        boundary_refinement: Literal["improved", "gcn"] | None = None,
        quasi_multitask: float | None = None,
        mask_head: dict | list[dict] | None = None,
        mask_roi_extractor: dict | list[dict] | None = None,
        **kwargs: Any,
    ) -> None:
        switches = {
            "deconv_pyramid": deconv_pyramid,
            "boundary_refinement": boundary_refinement,
            "quasi_multitask": quasi_multitask,
        }
        changes = {name: value for name, value in switches.items() if value}
        if kwargs.get("train_cfg") is None:
            changes["quasi_multitask"] = None
        mask_head = _changed("mask_head", mask_head, "FCNMaskHead", "MaskPlusHead", changes)
        if contextual_fusion:
            filters = FILTERS if contextual_fusion is True else tuple(contextual_fusion)
            mask_roi_extractor = _changed(
                "mask_roi_extractor",
                mask_roi_extractor,
                "SingleRoIExtractor",
                "ContextualFusionExtractor",
                {"contextual_fusion": filters},
            )
        super().__init__(mask_head=mask_head, mask_roi_extractor=mask_roi_extractor, **kwargs)
        masks = _first(self.mask_roi_extractor)
        if isinstance(masks, ContextualFusionExtractor) and self.with_bbox:
            levels, boxes = masks.num_inputs - 1, _first(self.bbox_roi_extractor).num_inputs
            if boxes > levels:
                # The features of the images would pass for a level.
                raise ValueError(
                    f"contextual_fusion: boxes are pooled from {boxes} levels and masks from "
                    f"{levels}; give mask_roi_extractor no fewer than bbox_roi_extractor"
                )

    def with_image_features(
        self, x: Features, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Features:
        """Append the features of the whole images, where contextual fusion is on.

        Args:
            x: Feature maps, each (N, C, Hl, Wl).
            sizes: Height and width of each image in pixels of the network's input; without them
                the feature maps are taken to hold no padding.

        Returns:
            The levels that RoIs use, and the features; ``x`` as it is where fusion is off.
        """
        extractor = _first(self.mask_roi_extractor)
        if not isinstance(extractor, ContextualFusionExtractor):
            return x
        levels = x[: extractor.num_inputs - 1]
        if sizes is None:
            height, width = levels[-1].shape[-2:]
            stride = extractor.featmap_strides[-1]
            sizes = [(height * stride, width * stride)] * len(levels[-1])
        return (*levels, extractor.image_features(levels, sizes))

    def loss(
        self, x: Features, rpn_results_list: InstanceList, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """As of the RoI head."""
        x = self.with_image_features(x, _sizes(batch_data_samples))
        return super().loss(x, rpn_results_list, batch_data_samples)

    def predict(
        self,
        x: Features,
        rpn_results_list: InstanceList,
        batch_data_samples: SampleList,
        rescale: bool = False,
    ) -> InstanceList:
        """As of the RoI head."""
        x = self.with_image_features(x, _sizes(batch_data_samples))
        return super().predict(x, rpn_results_list, batch_data_samples, rescale)

    def forward(
        self,
        x: Features,
        rpn_results_list: InstanceList,
        batch_data_samples: SampleList | None = None,
    ) -> tuple:
        """As of the RoI head."""
        x = self.with_image_features(x, _sizes(batch_data_samples))
        return super().forward(x, rpn_results_list, batch_data_samples)


@MODELS.register_module()
class MaskPlusRoIHead(MaskPlusMixin, StandardRoIHead):
    """MaskPlus: the RoI head of Mask R-CNN; arguments are told at :class:`MaskPlusMixin`."""


@MODELS.register_module()
class MaskPlusCascadeRoIHead(MaskPlusMixin, CascadeRoIHead):
    """MaskPlus+ (section 4.9): every stage of Cascade Mask R-CNN has the techniques.

    Arguments are told at :class:`MaskPlusMixin`. Weights of a Mask R-CNN, whose heads have no
    stages, start every stage; what has another shape there, such as box deltas for each class
    where a cascade has one for all, is left out and reported as missing.
    """

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        for name in ("bbox_head", "mask_head"):
            _to_stages(state_dict, f"{prefix}{name}.", getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _to_stages(state_dict: dict, prefix: str, stages: nn.ModuleList) -> None:
    """Replace the weights of one head by the same for each stage."""
    owned = [stage.state_dict() for stage in stages]
    parts = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
    for part in parts:
        if part.split(".")[0].isdigit():
            continue
        value = state_dict.pop(prefix + part)
        for number, own in enumerate(owned):
            if part not in own or own[part].shape == value.shape:
                state_dict[f"{prefix}{number}.{part}"] = value


def _changed(name: str, config: Any, plain: str, ours: str, changes: dict) -> Any:
    """One config, or each of several, of our type and with the changes."""
    if isinstance(config, Sequence):
        return [_changed(name, one, plain, ours, changes) for one in config]
    kind = None if config is None else config.get("type")
    if getattr(kind, "__name__", str(kind)).rpartition(".")[2] not in (plain, ours):
        raise ValueError(f"MaskPlus extends a {name} of type {plain}, not {kind}")
    return ConfigDict(config, type=ours, **changes)


def _first(extractor: nn.Module) -> nn.Module:
    """The extractor, or the first of a cascade's: they differ in their convolutions alone."""
    return extractor[0] if isinstance(extractor, nn.ModuleList) else extractor


def _sizes(batch_data_samples: SampleList | None) -> list[tuple[int, int]] | None:
    if not batch_data_samples:
        return None
    return [sample.metainfo["img_shape"][:2] for sample in batch_data_samples]
