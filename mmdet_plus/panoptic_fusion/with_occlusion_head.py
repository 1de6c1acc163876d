"""What detectors share whose fuser asks a network who lies on top of whom."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import InstanceList, OptConfigType
from torch import Tensor, nn

from .fusers import OcclusionFusion

# The heads by the field of the instances that they fill, for messages.
_HEADS = {"occlusion": "OcclusionHead", "ranking_scores": "SpatialRankingHead"}


class WithOcclusionHead:
    """A detector's part that trains and asks an occlusion head; the detector inherits it first.

    The detector has a ``panoptic_fusion_head``, calls ``init_occlusion_head`` (or sets
    ``occlusion_head`` to None), and tells by ``find_instances`` what it finds.
    """

    occlusion_only = False

    def init_occlusion_head(self, occlusion_head: OptConfigType, occlusion_only: bool) -> None:
        """Build the head, and freeze all else if it is trained alone.

        Args:
            occlusion_head: Its config, or None.
            occlusion_only: Whether the head alone is trained; all else stays as it was loaded.

        Raises:
            ValueError: ``occlusion_only`` without a head, a head for another number of classes, or
                a fuser that :meth:`check_fuser` refuses.
        """
        fuser = self.panoptic_fusion_head
        self.occlusion_head = None if occlusion_head is None else MODELS.build(occlusion_head)
        classes = getattr(self.occlusion_head, "num_classes", fuser.num_things_classes)
        if classes != fuser.num_things_classes:
            raise ValueError(
                f"occlusion_head has num_classes={classes}, the model {fuser.num_things_classes} "
                "classes of things: set them both"
            )
        self.check_fuser(fuser)
        self.occlusion_only = occlusion_only
        if occlusion_only:
            if self.occlusion_head is None:
                raise ValueError("occlusion_only=True trains the occlusion head alone: give one")
            self.requires_grad_(False)
            self.occlusion_head.requires_grad_(True)

    def check_fuser(self, fuser: nn.Module) -> None:
        """See that a fuser is told all that it asks for.

        Args:
            fuser: In the place of ``panoptic_fusion_head``.

        Raises:
            ValueError: The occlusion head that it needs is not there, or has a higher threshold.
        """
        head, field = self.occlusion_head, getattr(fuser, "field", None)
        if field is None:
            return
        if getattr(head, "field", None) != field:
            raise ValueError(
                f"{type(fuser).__name__} needs an occlusion_head of type {_HEADS[field]}, not "
                f"{type(head).__name__ if head else None}"
            )
        asked = [("score_thr", fuser.score_thr, "score_thr")]
        if isinstance(fuser, OcclusionFusion):
            asked.append(("occlusion_thr", fuser.settings["occlusion_thr"], "overlap_thr"))
        for theirs, least, ours in asked:
            if least < getattr(head, ours):
                raise ValueError(
                    f"{type(fuser).__name__} with {theirs}={least} asks about instances that the "
                    f"occlusion head passes over: give occlusion_head {ours}={least} as well"
                )

    def train(self, mode: bool = True) -> "WithOcclusionHead":
        """Enter training; what is frozen stays as at test."""
        super().train(mode)
        if mode and self.occlusion_only:
            for child in self.children():
                child.train(child is self.occlusion_head)
        return self

    def find_instances(self, x: tuple[Tensor, ...], batch_data_samples: SampleList) -> InstanceList:
        """Find what the occlusion head learns from.

        Args:
            x: Feature maps.
            batch_data_samples: With the images' meta information.

        Returns:
            Per image ``bboxes``, ``scores``, ``labels`` and ``masks``, in pixels of the network's
            input.
        """
        raise NotImplementedError

    def occlusion_loss(
        self, x: tuple[Tensor, ...], batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Compute the losses of the occlusion head, none without one.

        Args:
            x: Feature maps.
            batch_data_samples: With the ground truth.
        """
        if self.occlusion_head is None:
            return {}
        # What the model finds at test is what fusers are asked about.
        with torch.no_grad(), _as_at_test(self):
            results = self.find_instances(x, batch_data_samples)
        return self.occlusion_head.loss(x, results, batch_data_samples)

    def with_occlusion(
        self, x: tuple[Tensor, ...], results: InstanceList, metas: list[dict], rescale: bool
    ) -> InstanceList:
        """Let the occlusion head, if there is one, tell of the instances.

        Args:
            x: Feature maps.
            results: Per image, in pixels of the original, or of the network's input.
            metas: Of the images.
            rescale: Which of the two.

        Returns:
            The results.
        """
        if self.occlusion_head is None:
            return results
        factors = [meta["scale_factor"] if rescale else (1.0, 1.0) for meta in metas]
        scales = [x[0].new_tensor((*factor, *factor)) for factor in factors]
        return self.occlusion_head.predict(x, results, scales)


@contextmanager
def _as_at_test(model: nn.Module) -> Iterator[None]:
    """Let a model in training predict: statistics of batch normalisation stay as they are."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
