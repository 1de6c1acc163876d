"""A detector's test that tells the figures before and after refinement."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from mmseg_plus.common.coco_checks import read_picture
from mmseg_plus.common.errors import UserError

from .refiner import BoundaryRefiner


@METRICS.register_module()
class BoundaryRefinementMetric(BaseMetric):
    """Evaluates a model's masks twice, as they are and with refined boundaries.

    Any metric of instance masks goes inside, ``test_evaluator=dict(
    type="BoundaryRefinementMetric", metric=dict(type="BoundaryMetric", ann_file=...))``, and
    its figures come out as ``coarse/...`` and ``refined/...``. ``custom_imports`` of the config
    must name ``mmseg_plus.bpr``; ``tools/test.py --refine`` does all of this by itself.

    Args:
        metric: Config of the metric. Its ``prefix`` is replaced, and files that it writes
            (``outfile_prefix``) get ``_refined`` in their names for the second time.
        refiner: Arguments of :class:`BoundaryRefiner`; the shipped refiner on the device at hand
            if None.
        kwargs: :class:`mmengine.evaluator.BaseMetric`'s.
    """

    default_prefix = "refinement"

    def __init__(self, metric: dict, refiner: dict | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        refined = dict(metric, prefix="refined")
        if metric.get("outfile_prefix"):
            refined["outfile_prefix"] = f"{metric['outfile_prefix']}_refined"
        self.coarse = METRICS.build(dict(metric, prefix="coarse"))
        self.refined = METRICS.build(refined)
        try:
            self.refiner = BoundaryRefiner(**{"device": get_device(), **(refiner or {})})
        except ValueError as error:
            raise UserError(f"BoundaryRefinementMetric: refiner: {error}") from error

    @property
    def dataset_meta(self) -> dict | None:
        """The data set's classes and palette, as the inner metrics know them."""
        return self.coarse.dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        self.coarse.dataset_meta = self.refined.dataset_meta = meta

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Hand on the predictions of a batch, and refined copies of them."""
        self.coarse.process(data_batch, data_samples)
        self.refined.process(data_batch, [self._refine(sample) for sample in data_samples])

    def _refine(self, sample: dict) -> dict:
        predictions = sample["pred_instances"]
        if "masks" not in predictions:
            raise UserError(
                "BoundaryRefinementMetric: the model predicts no masks; take a model with masks, "
                "or leave out the refinement"
            )
        masks = predictions["masks"]
        coarse = masks.detach().cpu().numpy() if torch.is_tensor(masks) else np.asarray(masks)
        height, width = sample["ori_shape"][:2]
        image = read_picture(sample.get("img_id", ""), sample["img_path"], height, width)
        refined = torch.from_numpy(self.refiner.refine(image, coarse.astype(bool)))
        # The detector's own sample stays as it is.
        sample, predictions = copy(sample), copy(predictions)
        predictions["masks"] = refined
        sample["pred_instances"] = predictions
        return sample

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Not used: the inner metrics collect and compute."""
        raise NotImplementedError("the inner metrics compute")

    def evaluate(self, size: int) -> dict[str, float]:
        """The figures of both, over all processes."""
        return {**self.coarse.evaluate(size), **self.refined.evaluate(size)}
