"""Steps of the pipelines of boundary patches that mmseg lacks."""

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PackPatchInputs(PackSegInputs):
    """Pack a patch: the coarse mask as the image's fourth channel, in {0, 255}, and by itself.

    The sample's ``coarse_mask`` is what the metric compares the refined mask with.
    """

    def transform(self, results: dict) -> dict:
        """Pack ``img``, ``coarse_mask`` and ``gt_seg_map``."""
        mask = np.ascontiguousarray(results["coarse_mask"])
        # Photometric distortion may leave floats beyond a pixel's range.
        image = np.clip(results["img"], 0, 255).astype(np.uint8)
        image = np.concatenate([image, mask[..., None] * np.uint8(255)], axis=2)
        packed = super().transform(dict(results, img=image))
        packed["data_samples"].coarse_mask = PixelData(data=torch.from_numpy(mask)[None])
        return packed
