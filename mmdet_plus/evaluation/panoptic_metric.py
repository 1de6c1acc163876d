"""mmdet's evaluator of panoptic segmentation, from predictions straight to counts."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmdet.evaluation import CocoPanopticMetric
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.registry import METRICS
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger, print_log
from torch import Tensor

from mmdet_plus.datasets.checked_coco import PanopticTruth
from mmdet_plus.datasets.panoptic_checks import tell_things, things_told
from mmseg_plus.common.coco_checks import raise_faults
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import write_file, write_json

from .id_maps import encode_id_map, read_for_counting
from .panoptic_files import check_truth, split_categories
from .panoptic_quality import (
    VOID,
    Counts,
    Overlaps,
    Segments,
    add_counts,
    class_table,
    count_segments,
    group_table,
    overlap_areas,
    panoptic_figures,
    segments_of,
)


class _Truth(NamedTuple):
    """Ground truth of one image: its map for ``pair_areas``, its segments, its name in messages."""

    ids: Tensor
    segments: Segments
    who: str


@METRICS.register_module()
class PanopticMetric(CocoPanopticMetric):
    """Panoptic quality without a detour over PNGs of the predictions.

    Takes the place of ``CocoPanopticMetric`` in a config, with its arguments and its figures:
    ``PQ``, ``SQ``, ``RQ`` and the three with ``_th`` and ``_st``, in percent, with the prefix
    ``coco_panoptic/`` by default. The rules are panopticapi's, see
    :mod:`mmdet_plus.evaluation.panoptic_quality`. Unlike mmdet's:

    - Labels count by ``metainfo.classes``, whatever the order of the categories in ``ann_file``, as
      with ``CheckedCocoPanopticDataset``. (mmdet's ``CocoPanopticDataset`` counts by the file.)
    - A stuff class may have the label 0; there, its pixels take those of no class in.
    - Where categories of ``ann_file`` lack ``isthing``, the metainfo's ``thing_classes`` tell.
    - PNGs of ground truth are looked for under the annotation's ``file_name``.
    - Images that were not processed do not count, with ``outfile_prefix`` either.
    - A group without a category that occurs has -1, there an error.

    Args:
        ann_file: A COCO panoptic JSON. None: segments come with the data samples
            (``segments_info``, to be added to ``meta_keys``).
        seg_prefix: Folder of its PNGs. None: data samples tell their ``seg_map_path``.
        classwise: Whether to log a table of all classes.
        format_only: Only write predictions, without ground truth.
        outfile_prefix: Where to write predictions: ``{prefix}.panoptic.json`` and the folder
            ``{prefix}.panoptic``. Nothing is written by default.
        nproc: Taken and not used; counting takes one process.
        strict: Whether to refuse ground truth whose JSON and PNGs contradict each other. False
            counts what is there, see :func:`mmdet_plus.evaluation.pq_from_files`.
        kwargs: As of ``CocoPanopticMetric``: ``backend_args``, ``collect_device``, ``prefix``.

    Raises:
        UserError: A file, a record or a prediction cannot be used; the message names it.
    """

    def __init__(
        self,
        ann_file: str | None = None,
        seg_prefix: str | None = None,
        classwise: bool = False,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        nproc: int = 32,
        *,
        strict: bool = True,
        **kwargs,
    ) -> None:
        # Nothing temporary is written, so that the parent needs no folder for it.
        super().__init__(
            seg_prefix=seg_prefix,
            classwise=classwise,
            outfile_prefix=outfile_prefix or "",
            nproc=nproc,
            **kwargs,
        )
        self.outfile_prefix, self.format_only = outfile_prefix, format_only
        if format_only and not outfile_prefix:
            raise UserError(
                "PanopticMetric: format_only=True needs outfile_prefix, the start of the names to "
                "write to, such as 'work_dirs/results'"
            )
        self.strict = strict
        self._ann_file = ann_file
        self._cat_ids: list[int] | None = None
        if ann_file:
            required = ("images", "categories") + (() if format_only else ("annotations",))
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = PanopticTruth(path, str(ann_file), required)

    @property
    def dataset_meta(self) -> dict | None:
        """The data set's metainfo, by which labels are understood."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        # The runner sets it when it is built: what does not fit is told before the test runs.
        if not meta or "classes" not in meta:
            raise UserError("PanopticMetric: the data set has no `metainfo.classes`; set it")
        self._dataset_meta = meta
        classes = list(meta["classes"])
        if len(classes) >= INSTANCE_OFFSET:
            raise UserError(
                f"PanopticMetric: {len(classes)} classes; mmdet's panoptic maps hold at most "
                f"{INSTANCE_OFFSET - 1}"
            )
        if self._coco_api is None:
            told = things_told(meta)
            if not told:
                raise UserError(
                    "PanopticMetric: without `ann_file` the data set must tell its things: give "
                    "`metainfo=dict(classes=(...), thing_classes=(...))`"
                )
            self._cat_ids = list(range(len(classes)))
            categories = [
                dict(id=label, name=name, isthing=int(told[name]))
                for label, name in enumerate(classes)
            ]
            self.categories = dict(enumerate(categories))
            return
        self._cat_ids = self._coco_api.get_cat_ids(classes)
        categories = self._coco_api.dataset["categories"]
        if not all("isthing" in category for category in categories):
            # Metainfo that is not needed may be left over from COCO's.
            raise_faults(self._coco_api.source, tell_things(categories, things_told(meta)))
        in_file = [category["name"] for category in categories if category["name"] in classes]
        if classes != in_file and meta.get("label_order") != "classes":
            print_log(
                f"{self._ann_file}: labels are taken to count by `metainfo.classes`, whose order "
                "is not the file's; those of mmdet's CocoPanopticDataset count by the file: use "
                "CheckedCocoPanopticDataset",
                logger="current",
                level=logging.WARNING,
            )
        self.categories = self._coco_api.cats

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count a batch's segments, and write its predictions where that was asked for.

        Args:
            data_batch: Not used.
            data_samples: Each with ``img_id``, ``img_path``, ``ori_shape`` and
                ``pred_panoptic_seg.sem_seg`` (1, H, W): label + number x INSTANCE_OFFSET; the label
                after the last class, or ``pred_panoptic_seg.ignore_index``, is void.

        Raises:
            UserError: A prediction or its ground truth cannot be used.
        """
        if self._cat_ids is None:
            raise UserError("PanopticMetric: set `dataset_meta`, the data set's metainfo, first")
        for sample in data_samples:
            who = f"image {sample['img_id']!r} ({sample.get('img_path', 'no path')})"
            encoded = predicted_map(sample, who)
            # mmdet's own metric takes both for void.
            void = {len(self._cat_ids), sample["pred_panoptic_seg"].get("ignore_index")} - {None}
            result: dict[str, Any] = dict(image_id=sample["img_id"])
            if not self.format_only:
                result["counts"] = self._count(sample, encoded, void, who)
            if self.outfile_prefix:
                result["prediction"] = self._write(sample, encoded, void, who)
            self.results.append(result)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the figures from all that was processed.

        Args:
            results: Counts of each image, of all processes.

        Returns:
            Figures by name, without the prefix.

        Raises:
            UserError: There is nothing to evaluate.
        """
        if not results:
            raise UserError("PanopticMetric: no image was processed; is the data set empty?")
        logger: MMLogger = MMLogger.get_current_instance()
        if self.outfile_prefix:
            content = dict(
                annotations=[result["prediction"] for result in results],
                categories=list(self.categories.values()),
            )
            path = write_json(f"{self.outfile_prefix}.panoptic.json", content, indent=None)
            logger.info(f"panoptic predictions are in {path} and {self.seg_out_dir}")
        if self.format_only:
            return {}
        if self._coco_api is not None:
            missing = self._coco_api.annotated - {result["image_id"] for result in results}
            if missing:
                logger.warning(
                    f"{len(missing)} of {len(self._coco_api.annotated)} images of {self._ann_file} "
                    "were not processed and do not count"
                )
        counts = add_counts(result["counts"] for result in results)
        groups = split_categories(self.categories.values())
        figures = panoptic_figures(counts, *groups)
        numbers = [len(counts.keys() & set(group)) for group in groups]
        logger.info("Panoptic Evaluation Results:\n" + group_table(figures, *numbers))
        if self.classwise:
            names = {self.categories[ident]["name"]: ident for ident in self._cat_ids}
            table = class_table({name: counts.get(ident) for name, ident in names.items()})
            logger.info("Classwise Panoptic Evaluation Results:\n" + table)
        return figures

    def _count(
        self, sample: dict, encoded: np.ndarray, void: set[int], who: str
    ) -> dict[int, Counts]:
        size = tuple(sample["ori_shape"][:2])
        truth = self._truth(sample, size, who)
        if size != encoded.shape:
            raise UserError(
                f"PanopticMetric: the prediction on {who} is {list(encoded.shape)} (height, width) "
                f"but its ground truth is {list(size)}; predict with rescale=True"
            )
        overlaps = overlap_areas(truth.ids, encoded)
        if self.strict:
            check_truth(overlaps, truth.segments, truth.who)
        ids, labels = segment_ids(overlaps.pred_ids, void)
        present, first = np.unique(ids, return_index=True)
        first = first[present != VOID]
        found = Segments(ids[first], self._categories(labels[first], who))
        return count_segments(Overlaps(overlaps.gt_ids, ids, overlaps.areas), truth.segments, found)

    def _categories(self, labels: np.ndarray, who: str) -> np.ndarray:
        """Category ids of labels."""
        unknown = sorted(set(labels[labels >= len(self._cat_ids)].tolist()))
        if unknown:
            raise UserError(
                f"PanopticMetric: the prediction on {who} has the labels {unknown}, but of "
                f"{len(self._cat_ids)} classes the last has the label {len(self._cat_ids) - 1}; "
                "set the model's numbers of thing and stuff classes to the data set's"
            )
        return np.array(self._cat_ids, np.int64)[labels]

    def _truth(self, sample: dict, size: tuple[int, int], who: str) -> _Truth:
        """Read the ground truth of a sample."""
        path = sample.get("seg_map_path")
        if self._coco_api is None:
            if "segments_info" not in sample:
                raise UserError(
                    f"PanopticMetric: {who} has no ground truth; give the metric `ann_file` and "
                    "`seg_prefix`, or add 'segments_info' and 'seg_map_path' to the `meta_keys` of "
                    "PackDetInputs"
                )
            segments = segments_of(list(self._told_segments(sample["segments_info"])))
            if path is None and self.seg_prefix is not None:
                path = os.path.join(self.seg_prefix, _png_name(sample))
            source = "data set"
        else:
            source = self._coco_api.source
            image = self._image(sample, who)
            if sample["img_id"] not in self._coco_api.annotated:
                raise UserError(
                    f"{source}: {who} has no panoptic annotation; add a record with its PNG and "
                    "`segments_info`, which may be empty, or take the image out of the file"
                )
            segments = segments_of(self._coco_api.imgToAnns[sample["img_id"]])
            if self.seg_prefix is not None:
                path = os.path.join(self.seg_prefix, image["segm_file"])
        if path is None:
            raise UserError(
                f"PanopticMetric: nothing tells where the PNG of {who} is; give `seg_prefix`, the "
                "folder of the ground truth's PNGs"
            )
        ids = self._read_truth(path, f"{source}: {who}", size)
        return _Truth(ids, segments, f"{source}: {who} ({path})")

    def _read_truth(self, path: str, who: str, size: tuple[int, int]) -> Tensor:
        """A map for ``pair_areas``."""
        return read_for_counting(path, who, size, self.backend_args)

    def _image(self, sample: dict, who: str) -> dict:
        """The record of a sample's image."""
        image = self._coco_api.imgs.get(sample["img_id"])
        if image is None:
            raise UserError(
                f"{self._coco_api.source}: has no {who}; give the metric the `ann_file` of the "
                "data set that is tested"
            )
        return image

    def _told_segments(self, segments: Sequence[Mapping]) -> Iterator[dict]:
        """Records as of a file; mmdet tells of a crowd that it is a thing class but no thing."""
        for segment in segments:
            thing = self.categories[segment["category"]]["isthing"]
            yield dict(
                id=segment["id"],
                category_id=segment["category"],
                iscrowd=int(bool(thing and not segment["is_thing"])),
            )

    def _write(self, sample: dict, encoded: np.ndarray, void: set[int], who: str) -> dict:
        """Write a prediction's PNG.

        Returns:
            Its record for the JSON.
        """
        name = _png_name(sample)
        if self._coco_api is not None:
            name = self._image(sample, who)["segm_file"]
        values, index, areas = np.unique(encoded, return_inverse=True, return_counts=True)
        ids, labels = segment_ids(values.astype(np.int64), void)
        kept = np.flatnonzero(ids != VOID)
        categories = self._categories(labels[kept], who)
        ids[kept] = np.arange(1, len(kept) + 1)
        png = encode_id_map(ids[index.reshape(encoded.shape)])
        write_file(os.path.join(self.seg_out_dir, name), png)
        segments = [
            dict(
                id=int(ids[place]),
                category_id=category,
                isthing=int(self.categories[category]["isthing"]),
                area=int(areas[place]),
            )
            for place, category in zip(kept, categories.tolist(), strict=True)
        ]
        return dict(image_id=sample["img_id"], file_name=name, segments_info=segments)


def predicted_map(sample: Mapping[str, Any], who: str) -> np.ndarray:
    """The panoptic map of a data sample.

    Args:
        sample: With ``pred_panoptic_seg.sem_seg``, a tensor (1, H, W) on any device.
        who: The image, for messages.

    Returns:
        (H, W) whole numbers, 0 or more.

    Raises:
        UserError: There is no such map.
    """
    prediction = sample.get("pred_panoptic_seg")
    if prediction is None or "sem_seg" not in prediction:
        raise UserError(
            f"PanopticMetric: the prediction on {who} has no `pred_panoptic_seg`; test a panoptic "
            "model, or judge instances by BoundaryMetric or CocoMetric"
        )
    encoded = prediction["sem_seg"].cpu().numpy()
    if encoded.ndim != 3 or len(encoded) != 1 or encoded.dtype.kind not in "iu":
        raise UserError(
            f"PanopticMetric: the panoptic map of {who} is {encoded.dtype} of the shape "
            f"{list(encoded.shape)}; give whole numbers of the shape [1, height, width]"
        )
    if encoded.size and encoded.min() < 0:
        raise UserError(
            f"PanopticMetric: the panoptic map of {who} holds {encoded.min()}; void is the label "
            "after the last class, nothing is negative"
        )
    return encoded[0]


def segment_ids(encoded: np.ndarray, void: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """Split values of mmdet's panoptic maps.

    Args:
        encoded: (K,) label + number x INSTANCE_OFFSET, 0 or more.
        void: Labels of no class.

    Returns:
        (K,) ids, 0 for void and different for different values otherwise; (K,) labels.
    """
    labels = encoded % INSTANCE_OFFSET
    # Stuff of the label 0 is the value 0, which is no id.
    ids = encoded + 1
    for label in void:
        ids[labels == label] = VOID
    return ids, labels


def _png_name(sample: dict) -> str:
    """A PNG named as the image."""
    return os.path.splitext(os.path.basename(sample["img_path"]))[0] + ".png"
