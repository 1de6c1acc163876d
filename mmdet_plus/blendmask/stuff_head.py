"""The semantic branch of Panoptic-FPN beside BlendMask (appendix A)."""

from mmdet.models.seg_heads import PanopticFPNHead
from mmdet.registry import MODELS
from mmdet.utils import ConfigType
from torch import Tensor

_LOSS = dict(type="CrossEntropyLoss", ignore_index=255, avg_non_ignore=True, loss_weight=0.5)


@MODELS.register_module()
class StuffHead(PanopticFPNHead):
    """Panoptic-FPN's semantic branch, in the authors' labels and at the image's resolution.

    Label 0 is any thing and label s + 1 the stuff class s, the opposite of mmdet's, whose fusion
    heads must not be fed from here. The loss is taken on logits that are enlarged to the image,
    where mmdet shrinks the target.

    Args:
        num_things_classes: Classes of things. :class:`BlendMask` fills it in.
        num_stuff_classes: Classes of stuff.
        loss_seg: Its ``ignore_index`` marks pixels without a label.
        **kwargs: Of :class:`PanopticFPNHead`.
    """

    def __init__(
        self,
        *,
        num_things_classes: int,
        num_stuff_classes: int = 53,
        loss_seg: ConfigType = _LOSS,
        **kwargs,
    ) -> None:
        super().__init__(
            num_things_classes=num_things_classes,
            num_stuff_classes=num_stuff_classes,
            loss_seg=loss_seg,
            **kwargs,
        )
        self.seg_rescale_factor = 1.0

    def _set_things_to_void(self, gt_semantic_seg: Tensor) -> Tensor:
        """Map mmdet's labels to this head's; what is beyond the classes is ignored."""
        labels = gt_semantic_seg.long()
        stuff = labels - self.num_things_classes + 1
        mapped = stuff.clamp(min=0)
        return mapped.masked_fill(mapped > self.num_stuff_classes, self.loss_seg.ignore_index)
