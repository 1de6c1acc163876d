"""The boundary patch refinement network: a coarse mask patch in, a better one out.

Shape legend: B patches, h and w a patch's size, S the side of the network's input, in pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor

from .colour_evidence import colour_evidence
from .residual_head import ResidualFCNHead

BACKGROUND, FOREGROUND = 0, 1


@MODELS.register_module()
class BoundaryPatchPreProcessor(SegDataPreProcessor):
    """Resizes patches to the network's input and normalises them.

    Inputs are (4, h, w): the image in BGR, 0 to 255, and the coarse mask in {0, 255}. The image is
    resized bilinearly and normalised as ever; the mask takes the nearest pixel, and m in {0, 1}
    becomes (m - 0.5) / 0.5 (supplement, section A). Targets take the nearest pixel, too. Sizes of
    patches may differ within a batch. Predictions come back in the size of the patch.

    Args:
        input_size: S.
        mean: Of R, G and B (of B, G and R with ``bgr_to_rgb=False``), 0 to 255.
        std: Likewise.
        bgr_to_rgb: Whether the network reads RGB.
        use_coarse_mask: False drops the mask, the ablation "without the coarse mask".
        use_colour_evidence: Add the channels of :func:`colour_evidence`; not in the paper.
        kwargs: :class:`SegDataPreProcessor`'s.
    """

    def __init__(
        self,
        input_size: int = 128,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        bgr_to_rgb: bool = True,
        use_coarse_mask: bool = True,
        use_colour_evidence: bool = False,
        **kwargs,
    ) -> None:
        half = (127.5,) if use_coarse_mask else ()
        side = (input_size, input_size)
        super().__init__(mean=mean, std=std, size=side, **kwargs)
        # Not handed on, because the maintained fork takes those of an image alone.
        for name, values in (("mean", (*mean, *half)), ("std", (*std, *half))):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.input_size = input_size
        self.channels = [2, 1, 0] if bgr_to_rgb else [0, 1, 2]
        if use_coarse_mask:
            self.channels.append(3)
        self.use_colour_evidence = use_colour_evidence

    def forward(self, data: dict, training: bool = False) -> dict[str, Any]:
        """Resize, normalise and stack a batch of patches, their targets with them."""
        data = self.cast_data(data)
        inputs, samples = data["inputs"], data.get("data_samples")
        side = (self.input_size, self.input_size)
        resized = []
        for patch in inputs:
            patch = patch[None].float()
            if patch.shape[-2:] != side:
                image = F.interpolate(patch[:, :3], side, mode="bilinear", align_corners=False)
                patch = torch.cat([image, F.interpolate(patch[:, 3:], side, mode="nearest")], 1)
            resized.append(patch)
        for sample in samples or ():
            # Logits are resized to this shape first, and then to the patch, its original one.
            sample.set_metainfo(dict(img_shape=side, pad_shape=side))
            if training:
                target = sample.gt_sem_seg.data[None].float()
                target = F.interpolate(target, side, mode="nearest")[0].long()
                sample.gt_sem_seg = PixelData(data=target)
        stacked = torch.cat(resized)
        return dict(
            inputs=self.normalize(stacked[:, :3], stacked[:, 3:] / 255), data_samples=samples
        )

    def normalize(self, images: Tensor, masks: Tensor) -> Tensor:
        """Normalise a batch of the network's input size.

        Args:
            images: (B, 3, S, S) BGR, 0 to 255.
            masks: (B, 1, S, S) in [0, 1].

        Returns:
            (B, 4, S, S): image and mask; without the coarse mask (B, 3, S, S); with colour
            evidence, its channels after them.
        """
        inputs = torch.cat([images, masks * 255], dim=1)[:, self.channels]
        inputs = (inputs - self.mean) / self.std
        if self.use_colour_evidence:
            inputs = torch.cat([inputs, colour_evidence(inputs[:, :3], masks)], dim=1)
        return inputs


@MODELS.register_module()
class BoundaryPatchRefiner(EncoderDecoder):
    """Binary segmentation of boundary patches, from the image and the coarse mask.

    An :class:`EncoderDecoder` of two classes, background and foreground, on a backbone that takes
    the mask as a fourth channel. Its data preprocessor is a :class:`BoundaryPatchPreProcessor`.
    It computes in channels-last order, in which the many small convolutions of an HRNet take two
    thirds of their time on a CPU.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.decode_head, ResidualFCNHead):
            channels = getattr(self.data_preprocessor, "channels", [])
            if len(channels) != 4:
                raise ValueError(
                    "ResidualFCNHead corrects the coarse mask: set use_coarse_mask=True"
                )
        self.to(memory_format=torch.channels_last)

    def extract_feat(self, inputs: Tensor) -> list[Tensor]:
        """Features of a (B, C, S, S) batch, at several strides.

        For a :class:`ResidualFCNHead` the batch itself comes after them.
        """
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        features = super().extract_feat(inputs)
        return [*features, inputs] if isinstance(self.decode_head, ResidualFCNHead) else features

    def refine_patches(
        self, images: Tensor, masks: Tensor, size: tuple[int, int], caution: float = 0.0
    ) -> Tensor:
        """Foreground probabilities of patches.

        The logits, not the probabilities, are resized to the patch.

        Args:
            images: (B, 3, S, S) BGR, 0 to 255.
            masks: (B, 1, S, S) coarse masks in {0, 1}.
            size: (h, w) of the patches in the image.
            caution: Added to the logarithm of the odds that a pixel is what the coarse mask says:
                pixels change only where the network is so much surer. 0 takes its word.

        Returns:
            (B, h, w) float32 probabilities.
        """
        inputs = self.data_preprocessor.normalize(images, masks)
        logits = self.decode_head(self.extract_feat(inputs))
        # Twice, as in training and in the authors' test: to the input, then to the patch.
        logits = resize(logits.float(), images.shape[-2:], mode="bilinear", align_corners=False)
        # The softmax of two classes is a sigmoid of their difference.
        odds = logits[:, FOREGROUND, None] - logits[:, BACKGROUND, None]
        if caution:
            odds = odds + caution * (2 * masks - 1)
        if tuple(images.shape[-2:]) != tuple(size):
            odds = resize(odds, size, mode="bilinear", align_corners=False)
        return odds[:, 0].sigmoid()
