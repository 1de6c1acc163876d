"""The detector: Mask R-CNN whose RoI head refines itself, and that starts from a Mask R-CNN."""

from collections.abc import Mapping
from typing import Any

from mmdet.models.detectors import MaskRCNN
from mmdet.registry import MODELS

from mmdet_plus.convert import is_plain_mask_rcnn, refining_module


@MODELS.register_module()
class MaskRefiningRCNN(MaskRCNN):
    """Mask Refining R-CNN (section 3.3).

    Training starts from a trained Mask R-CNN whose heads initialise the refining module
    (section 4.1): a checkpoint that has heads but no refining module is completed as it loads,
    so that ``load_from`` takes the files of mmdet's model zoo as they are.
    """

    def parameters_untrained_by(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Name the parameters that a checkpoint would only initialise.

        Such a checkpoint starts a training; tested as it is, it would give the figures of a
        refining module that has seen no data.

        Args:
            state_dict: Parameters by name.

        Returns:
            The refining module's names for a plain Mask R-CNN, nothing for any other.
        """
        if not is_plain_mask_rcnn(state_dict):
            return []
        return [name for name in self.state_dict() if name not in state_dict]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        if is_plain_mask_rcnn(own):
            for key, value in refining_module(own).items():
                state_dict[prefix + key] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
