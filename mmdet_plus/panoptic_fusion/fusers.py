"""The fusers as parts of a config: for mmdet's two-stage panoptic models, BlendMask and REFINE.

Shape letters: K instances, C channels of the semantics, H x W the image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.models.seg_heads.panoptic_fusion_heads import BasePanopticFusionHead
from mmdet.registry import MODELS
from mmdet.utils import InstanceList, OptConfigType
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from .heuristic import fuse_heuristic
from .occlusion import fuse_occlusion, fuse_soft_occlusion
from .spatial_ranking import fuse_spatial_ranking
from .unknown_erasing import unknown_erasing

_SETTINGS = ("overlap_thr", "stuff_area_limit", "score_thr")


@MODELS.register_module()
class UnknownErasing:
    """Unknown Erasing as a step of a fuser (REFINE).

    Args:
        threshold: See :func:`unknown_erasing`.
        dilation: See :func:`unknown_erasing`.
    """

    def __init__(self, threshold: float = 0.5, dilation: int = 3) -> None:
        self.threshold = threshold
        self.dilation = dilation

    def __call__(self, seg_logits: Tensor, stuff_channels: Sequence[int]) -> Tensor:
        """Predict the semantics and erase uncertain regions of stuff.

        Args:
            seg_logits: (C, H, W).
            stuff_channels: Those of stuff.

        Returns:
            (H, W) channels, C where a region was erased.
        """
        probs = seg_logits.float().softmax(0)
        return unknown_erasing(
            probs, self.threshold, self.dilation, list(stuff_channels), void=len(probs)
        )


@MODELS.register_module()
class HeuristicFusion(BasePanopticFusionHead):
    """Panoptic-FPN's heuristic, see :func:`fuse_heuristic`; goes where mmdet's fusion heads go.

    Semantics of two kinds are told apart by the number of channels: mmdet's of Panoptic-FPN (the
    stuff classes, then one for all things), and REFINE's (the classes of things, then of stuff).
    With one class of things the numbers are the same: they are taken for mmdet's unless
    ``things_apart`` says otherwise, as :class:`~mmdet_plus.refine.REFINE` has it say.

    Args:
        num_things_classes: Classes of things.
        num_stuff_classes: Classes of stuff.
        test_cfg: ``overlap_thr`` (or ``mask_overlap``, as mmdet calls it), ``stuff_area_limit`` and
            ``score_thr``; those of :func:`fuse_heuristic` where left out. mmdet's models put
            ``test_cfg.panoptic`` here.
        unknown_erasing: Config of :class:`UnknownErasing`, or an empty dict for its defaults.
        things_apart: Whether semantics are of REFINE's kind, where their number does not tell; None
            where nobody has said so.
        init_cfg: None.
    """

    #: What a network must tell of the instances; nothing here.
    field: str | None = None

    def __init__(
        self,
        num_things_classes: int = 80,
        num_stuff_classes: int = 53,
        test_cfg: OptConfigType = None,
        unknown_erasing: OptConfigType = None,
        things_apart: bool | None = None,
        init_cfg: OptConfigType = None,
    ) -> None:
        super().__init__(num_things_classes, num_stuff_classes, test_cfg, init_cfg=init_cfg)
        settings = dict(test_cfg or {})
        if "mask_overlap" in settings:
            settings.setdefault("overlap_thr", settings["mask_overlap"])
        self.settings = {name: settings[name] for name in _SETTINGS if name in settings}
        self.things_apart = things_apart
        self.unknown_erasing = None
        if unknown_erasing is not None:
            self.unknown_erasing = MODELS.build({"type": "UnknownErasing", **unknown_erasing})

    def loss(self, **kwargs: Any) -> dict:
        """Nothing is trained here."""
        return {}

    def predict(
        self, mask_results_list: InstanceList, seg_preds_list: list[Tensor], **kwargs: Any
    ) -> list[PixelData]:
        """Fuse the images of a batch.

        Args:
            mask_results_list: Per image, ``masks`` (K, H, W), ``scores`` and ``labels`` (K,), and
                what the fuser needs beyond.
            seg_preds_list: Per image, logits (C, H, W), see the class.
            kwargs: Not used.

        Returns:
            Per image, ``sem_seg`` (1, H, W), see :func:`to_mmdet_panoptic`.

        Raises:
            ValueError: C is of neither kind, or the results lack what the fuser needs.
        """
        return [
            self.fuse(results, logits, self.stuff_channels(len(logits)))
            for results, logits in zip(mask_results_list, seg_preds_list, strict=True)
        ]

    def stuff_channels(self, channels: int) -> range:
        """The channels of stuff among C."""
        things, stuff = self.num_things_classes, self.num_stuff_classes
        merged, apart = channels == stuff + 1, channels == things + stuff
        if merged and not (apart and self.things_apart):
            return range(stuff)
        if apart:
            return range(things, channels)
        raise ValueError(
            f"{type(self).__name__}: semantics of {channels} channels are neither of {stuff} "
            f"classes of stuff and one for things, nor of {things} classes of things and {stuff} "
            "of stuff"
        )

    def fuse(
        self, results: InstanceData, seg_logits: Tensor, stuff_channels: Sequence[int]
    ) -> PixelData:
        """Fuse one image.

        Args:
            results: See :meth:`predict`.
            seg_logits: (C, H, W).
            stuff_channels: The channel of each class of stuff; all others are things.

        Returns:
            See :meth:`predict`.
        """
        if self.unknown_erasing is None:
            # The places that max finds come several times sooner than those of argmax on a CPU.
            channels = seg_logits.max(0).indices
        else:
            channels = self.unknown_erasing(seg_logits, stuff_channels)
        # 0 for things and for what was erased.
        table = channels.new_zeros(len(seg_logits) + 1)
        table[list(stuff_channels)] = torch.arange(1, len(stuff_channels) + 1).to(table)
        panoptic, segments = self.combine(results, table[channels])
        return to_mmdet_panoptic(
            panoptic, segments, self.num_things_classes, self.num_stuff_classes
        )

    def combine(self, results: InstanceData, sem: Tensor) -> tuple[Tensor, list[dict]]:
        """Paste the instances over the stuff; what fusers differ in.

        Args:
            results: See :meth:`predict`.
            sem: (H, W), 0 = thing or nothing, s + 1 = class s of stuff.

        Returns:
            As of :func:`fuse_heuristic`.
        """
        return fuse_heuristic(results.masks, results.scores, results.labels, sem, **self.settings)

    @property
    def score_thr(self) -> float:
        """Instances of lower scores take no part."""
        return self.settings.get("score_thr", 0.5)

    def told(self, results: InstanceData) -> Tensor:
        """What a network of the model must have told of the instances."""
        if self.field not in results:
            raise ValueError(
                f"{type(self).__name__} needs '{self.field}' of the instances: the model must have "
                "the head that predicts it"
            )
        return results[self.field]


@MODELS.register_module()
class SpatialRankingFusion(HeuristicFusion):
    """OANet's order of pasting, see :func:`fuse_spatial_ranking`.

    The results need ``ranking_scores`` (K,). Arguments are those of :class:`HeuristicFusion`.
    """

    field = "ranking_scores"

    def combine(self, results: InstanceData, sem: Tensor) -> tuple[Tensor, list[dict]]:
        """Paste by ranking score; see :meth:`HeuristicFusion.combine`."""
        ranking = self.told(results)
        return fuse_spatial_ranking(
            results.masks, results.scores, results.labels, sem, ranking, **self.settings
        )


@MODELS.register_module()
class OcclusionFusion(HeuristicFusion):
    """The hard order of OCFusion and of REFINE's strong baseline, see :func:`fuse_occlusion`.

    The results need ``occlusion`` (K, K).

    Args:
        occlusion_thr: See :func:`fuse_occlusion`.
        kwargs: Those of :class:`HeuristicFusion`.
    """

    field = "occlusion"

    def __init__(self, *, occlusion_thr: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings["occlusion_thr"] = occlusion_thr

    def combine(self, results: InstanceData, sem: Tensor) -> tuple[Tensor, list[dict]]:
        """Paste by hard occlusion; see :meth:`HeuristicFusion.combine`."""
        occlusion = self.told(results)
        return fuse_occlusion(
            results.masks, results.scores, results.labels, sem, occlusion, **self.settings
        )


@MODELS.register_module()
class SoftOcclusionFusion(OcclusionFusion):
    """REFINE's Soft Occlusion Estimation, see :func:`fuse_soft_occlusion`.

    The results need ``occlusion`` (K, K).

    Args:
        sigma: Of Eq. 7.
        kwargs: Those of :class:`OcclusionFusion`.
    """

    def __init__(self, *, sigma: float = 2.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings["sigma"] = sigma

    def combine(self, results: InstanceData, sem: Tensor) -> tuple[Tensor, list[dict]]:
        """Paste by soft occlusion; see :meth:`HeuristicFusion.combine`."""
        occlusion = self.told(results)
        return fuse_soft_occlusion(
            results.masks, results.scores, results.labels, sem, occlusion, **self.settings
        )


def to_mmdet_panoptic(
    panoptic: Tensor, segments: list[dict[str, Any]], num_things: int, num_stuff: int
) -> PixelData:
    """Turn a fused map into what mmdet's panoptic metrics and visualisers read.

    Args:
        panoptic: (H, W) ids of segments, 0 = void.
        segments: As :func:`fuse_heuristic` lists them; a stuff class counts from 1.
        num_things: Thing classes.
        num_stuff: Stuff classes.

    Returns:
        ``sem_seg`` (1, H, W) int32: of a thing its class + ``INSTANCE_OFFSET`` times its id, of
        stuff ``num_things`` - 1 + its class, of void ``num_things + num_stuff``.
    """
    # Segments are numbered from 1.
    codes = [num_things + num_stuff, *(0 for _ in segments)]
    for segment in segments:
        number, label = segment["id"], segment["category_id"]
        codes[number] = (
            label + number * INSTANCE_OFFSET if segment["isthing"] else num_things - 1 + label
        )
    return PixelData(sem_seg=panoptic.new_tensor(codes)[panoptic.long()][None])
