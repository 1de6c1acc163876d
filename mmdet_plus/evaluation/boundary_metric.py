"""mmdet's evaluator of masks with a look at their boundaries."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.fileio import load
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from mmseg_plus.common.errors import UserError

from .mask_quality import AF_ITEMS, AP_ITEMS, check_options, evaluate_masks

# What this class computes itself whatever ``metric`` says.
_OWN = ("segm", "boundary", "AF")


@METRICS.register_module()
class BoundaryMetric(CocoMetric):
    """Mask AP, boundary AP and boundary F-score (AF) of instance masks, in one go.

    Takes the place of ``CocoMetric`` in a config. Figures, with the prefix ``coco/`` by default:
    ``segm_mAP``, ``boundary_mAP`` and both of them with ``_50``, ``_75``, ``_s``, ``_m`` and
    ``_l``; ``AF``, ``AF_s``, ``AF_m`` and ``AF_l``. They are shares in [0, 1], not rounded; -1
    where there is no ground truth (of that size), 0 where there is some and nothing was found.

    AP is COCO's, boundary AP that of Cheng et al. 2021. AF is the mean of the boundary F-scores at
    ``boundary_tolerance`` of all true positives at the IoU thresholds 0.50:0.05:0.95, pooled over
    thresholds and classes; the whole protocol and what is known of PolyTransform's and BPR's is
    told in :mod:`mmdet_plus.evaluation.mask_quality`.

    Unlike ``CocoMetric``, figures at 0.5 and 0.75 and by size count ``max_dets`` detections as mAP
    does (there: 1,000), and where no ``ann_file`` is given, the sizes of ground truth are the areas
    of the masks (there: of the boxes).

    Args:
        ann_file: A COCO instances JSON. None: ground truth comes with the data samples.
        metric: ``'segm'`` stands for all of the above. Whatever else ``CocoMetric`` knows may be
            added and is left to it: ``['bbox', 'segm']``.
        boundary_tolerance: Distance in pixels of the original image up to which boundary pixels
            of AF meet.
        boundary_dilation_ratio: Width of the region of boundary AP as a share of the image's
            diagonal.
        class_average: Whether AF is averaged within each class first, then over classes.
        max_dets: Detections that count per image and class.
        processed_only: Whether to evaluate only the images that were processed, for data sets with
            ``indices``. By default every image of ``ann_file`` counts, as with ``CocoMetric``, and
            what was not processed is missed.
        metric_items: Which figures to report, such as ``['mAP', 'mAP_50', 'AF']``; the names of AP
            stand for mask AP and boundary AP. All by default.
        kwargs: As of ``CocoMetric``. With ``classwise``, figures ``{class}_precision`` (mask AP),
            ``{class}_boundary_precision`` and ``{class}_AF`` are added and a table is logged.

    Raises:
        UserError: A record of ``ann_file`` or a prediction cannot be used; the message names its
            image.
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | Sequence[str] = "segm",
        *,
        boundary_tolerance: float = 1.0,
        boundary_dilation_ratio: float = 0.02,
        class_average: bool = False,
        max_dets: int = 100,
        processed_only: bool = False,
        metric_items: Sequence[str] | None = None,
        **kwargs,
    ) -> None:
        metrics = [metric] if isinstance(metric, str) else list(metric)
        items = (*AP_ITEMS, *AF_ITEMS) if metric_items is None else tuple(metric_items)
        super().__init__(
            ann_file=ann_file,
            metric=[name for name in metrics if name not in _OWN],
            # None lets it choose by metric.
            metric_items=metric_items and [item for item in items if item in AP_ITEMS],
            **kwargs,
        )
        self.processed_only = processed_only
        self._ann_file = ann_file
        self._options = dict(
            boundary_tolerance=boundary_tolerance,
            boundary_dilation_ratio=boundary_dilation_ratio,
            class_average=class_average,
            max_dets=max_dets,
            items=items,
            classwise=self.classwise,
            iou_thrs=np.atleast_1d(self.iou_thrs).tolist(),
            areas_from_masks=ann_file is None,
        )
        check_options(**self._options)
        self._detections: list[dict] = []

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Take a batch's predictions; those without masks of the image's size are an error."""
        for sample in data_samples:
            check_prediction(sample)
        super().process(data_batch, data_samples)

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        """Write the predictions as COCO results and keep those of masks."""
        files = super().results2json(results, outfile_prefix)
        # The parent deletes temporary files before it returns.
        self._detections = [] if self.format_only else load(files["segm"])
        return files

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the figures from all that was processed.

        Args:
            results: Ground truth and prediction of each image.

        Returns:
            Figures by name, without the prefix.
        """
        if not results:
            raise UserError("BoundaryMetric: no image was processed; is the data set empty?")
        if self.processed_only:
            self.img_ids = list(dict.fromkeys(truth["img_id"] for truth, _ in results))
        figures = OrderedDict(super().compute_metrics(results))
        if self.format_only:
            return figures
        logger: MMLogger = MMLogger.get_current_instance()
        logger.info("Evaluating masks and their boundaries...")
        detections, self._detections = self._detections, []
        own = evaluate_masks(
            self._coco_api,
            detections,
            img_ids=self.img_ids,
            cat_ids=self.cat_ids,
            sources=(self._ann_file or "ground truth of the data set", "predictions"),
            **self._options,
        )
        if self.classwise:
            names = [category["name"] for category in self._coco_api.loadCats(self.cat_ids)]
            logger.info("\n" + class_table(names, own))
        figures.update(own)
        return figures


def check_prediction(sample: dict) -> None:
    """Make sure that a data sample has masks of the original image's size.

    Args:
        sample: A data sample as a dictionary, with ``pred_instances``, ``ori_shape`` and
            ``img_id``.

    Raises:
        UserError: It has no masks, or a mask of another size.
    """
    instances, size = sample["pred_instances"], list(sample["ori_shape"][:2])
    who = f"image {sample['img_id']!r} ({sample.get('img_path', 'no path')})"
    if "masks" not in instances:
        raise UserError(
            f"BoundaryMetric: the prediction of {who} has no masks; evaluate a model with a mask "
            "head, or use CocoMetric for boxes"
        )
    masks = instances["masks"]
    sizes = [mask["size"] for mask in masks] if isinstance(masks, list) else [masks.shape[-2:]]
    if len(masks):
        for found in sizes:
            if list(found) != size:
                raise UserError(
                    f"BoundaryMetric: masks of {who} have the size {list(found)} but the original "
                    f"image has {size} (height, width); predict with rescale=True"
                )


def class_table(names: Sequence[str], figures: dict[str, float]) -> str:
    """Lay out the classes' own figures, a class in each row."""
    columns = ("precision", "boundary_precision", "AF")
    present = [column for column in columns if f"{names[0]}_{column}" in figures]
    heads = dict(precision="mAP", boundary_precision="boundary mAP", AF="AF")
    rows = [["category", *(heads[column] for column in present)]]
    for name in names:
        rows.append([name, *(f"{figures[f'{name}_{column}']:.3f}" for column in present)])
    return AsciiTable(rows).table
