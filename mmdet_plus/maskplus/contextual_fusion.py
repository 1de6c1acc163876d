"""Contextual fusion (section 3.1): every RoI's features see the whole image.

Shape letters: N images, K RoIs, C channels, S x S features of a RoI (14 x 14).
"""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmengine.model import BaseModule, constant_init
from torch import Tensor, nn

# The best row of Table 1.
FILTERS = (720, 512, 512, 256)


class ContextualFusion(BaseModule):
    """The convolutions between the image's features and the sum with those of the RoIs.

    3 x 3, stride 1, ReLU between them. The last has none and starts at zero (ours, the paper is
    silent): a model that starts from a trained Mask R-CNN starts out as that Mask R-CNN, and what
    is added to features of either sign may have either sign.

    Args:
        in_channels: C.
        filters: Channels of the convolutions, the last one equal to C.

    Raises:
        ValueError: The last number differs from C, so that nothing could be added.
    """

    def __init__(self, in_channels: int, filters: Sequence[int] = FILTERS) -> None:
        super().__init__()
        if not filters or filters[-1] != in_channels:
            raise ValueError(
                f"contextual_fusion: the last of the filters {tuple(filters)} must equal the "
                f"{in_channels} channels of the RoIs' features that it is added to"
            )
        last = len(filters) - 1
        self.convs = nn.Sequential(
            *(
                ConvModule(
                    in_channels if i == 0 else filters[i - 1],
                    channels,
                    3,
                    padding=1,
                    act_cfg=None if i == last else dict(type="ReLU"),
                )
                for i, channels in enumerate(filters)
            )
        )
        constant_init(self.convs[-1].conv, 0)

    def init_weights(self) -> None:
        super().init_weights()
        constant_init(self.convs[-1].conv, 0)

    def forward(self, roi_feats: Tensor, image_feats: Tensor, images: Tensor) -> Tensor:
        """Add to each RoI's features what the convolutions make of its image.

        Args:
            roi_feats: (K, C, S, S).
            image_feats: (N, C, S, S), the full-image RoI of each image.
            images: (K,) index of the image of each RoI.

        Returns:
            (K, C, S, S).
        """
        # Once an image, not once a RoI.
        return roi_feats + self.convs(image_feats)[images.long()]


def full_image_rois(sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """One RoI over each image, padding left out.

    Args:
        sizes: Height and width of the images in pixels of the network's input.
        like: A tensor on the device and of the type wanted.

    Returns:
        (N, 5) as (image, x1, y1, x2, y2).
    """
    rows = [(i, 0, 0, width, height) for i, (height, width) in enumerate(sizes)]
    return like.new_tensor(rows).reshape(-1, 5)


@MODELS.register_module()
class ContextualFusionExtractor(SingleRoIExtractor):
    """RoI extractor whose features hold those of the whole image too.

    Its feature maps are those of ``SingleRoIExtractor`` and, after them, what
    :meth:`image_features` made of them: :class:`~.maskplus_roi_head.MaskPlusRoIHead`, which knows
    the sizes of the images, puts it there.

    Args:
        contextual_fusion: Filters of :class:`ContextualFusion`.
        args, kwargs: Those of ``SingleRoIExtractor``.
    """

    def __init__(self, *args, contextual_fusion: Sequence[int] = FILTERS, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fusion = ContextualFusion(self.out_channels, contextual_fusion)

    @property
    def num_inputs(self) -> int:
        """The levels of the pyramid, and the features of the whole images."""
        return super().num_inputs + 1

    def image_features(self, feats: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Pool each whole image from the coarsest level that RoIs use.

        Args:
            feats: The levels, each (N, C, Hl, Wl).
            sizes: Height and width of each image in pixels of the network's input.

        Returns:
            (N, 1, C, S, S); five dimensions tell them from a level.
        """
        coarsest = feats[-1]
        return self.roi_layers[-1](coarsest, full_image_rois(sizes, coarsest))[:, None]

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Extract features and add those of the images.

        Args:
            feats: The levels, each (N, C, Hl, Wl), and :meth:`image_features`.
            rois: (K, 5) as (image, x1, y1, x2, y2) in pixels of the network's input.
            roi_scale_factor: As ``SingleRoIExtractor`` takes it.

        Returns:
            (K, C, S, S).

        Raises:
            ValueError: The last of ``feats`` is no such thing: whoever calls the RoI head must do
                so by its ``loss``, ``predict`` or ``forward``.
        """
        *levels, image_feats = feats
        if image_feats.ndim != 5:
            raise ValueError(
                "contextual_fusion: the features of the whole images are missing behind the "
                f"{len(self.roi_layers)} levels; call the RoI head by loss, predict or forward"
            )
        roi_feats = super().forward(tuple(levels), rois, roi_scale_factor)
        return self.fusion(roi_feats, image_feats[:, 0], rois[:, 0])
