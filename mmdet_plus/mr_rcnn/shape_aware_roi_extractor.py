"""Shape-aware RoIAlign over the levels of a feature pyramid."""

from typing import Any

from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor

from mmplus_ops import shape_aware_roi_align


@MODELS.register_module()
class ShapeAwareRoIExtractor(SingleRoIExtractor):
    """mmdet's single-level extractor, guided by a probability map per RoI (Eq. 4).

    Its arguments are those of ``SingleRoIExtractor`` with ``roi_layer.type='RoIAlign'``; without
    ``prob`` it is that extractor.

    Raises:
        ValueError: ``roi_layer`` is another layer, or takes maxima: Eq. 4 is an average.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.roi_layers:
            if not isinstance(layer, RoIAlign) or layer.pool_mode != "avg":
                raise ValueError(
                    "ShapeAwareRoIExtractor weighs the points of RoIAlign with pool_mode='avg', "
                    f"not of {layer}"
                )

    def forward(
        self,
        feats: tuple[Tensor, ...],
        rois: Tensor,
        prob: Tensor | None = None,
        roi_scale_factor: float | None = None,
    ) -> Tensor:
        """Extract features.

        Args:
            feats: Feature maps (N, C, Hl, Wl), one per stride.
            rois: (K, 5) as (image, x1, y1, x2, y2) in pixels of the network's input.
            prob: (K, Hp, Wp) in [0, 1] over the RoIs, or None for plain RoIAlign.
            roi_scale_factor: Factor on the size of RoIs, plain RoIAlign only.

        Returns:
            (K, C, H, W).

        Raises:
            ValueError: ``roi_scale_factor`` is given together with ``prob``, which would no
                longer lie over the RoIs.
        """
        if prob is None:
            return super().forward(feats, rois, roi_scale_factor)
        if roi_scale_factor is not None:
            raise ValueError("prob lies over the RoIs as they are: roi_scale_factor must be None")
        out = feats[0].new_zeros(len(rois), self.out_channels, *self.roi_layers[0].output_size)
        levels = self.map_roi_levels(rois, len(feats))
        for level, (feat, layer) in enumerate(zip(feats, self.roi_layers, strict=True)):
            chosen = (levels == level).nonzero().squeeze(1)
            # Levels without RoIs are pooled all the same: of no RoI, the op gives a result of no
            # row that still belongs to the graph, as distributed training needs.
            pooled = shape_aware_roi_align(
                feat,
                rois[chosen],
                prob[chosen],
                layer.output_size,
                layer.spatial_scale,
                layer.sampling_ratio,
                layer.aligned,
            )
            out = out.index_copy(0, chosen, pooled)
        return out
