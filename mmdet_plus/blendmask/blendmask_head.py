"""The top module (section 3.1): FCOS, and an attention map at every location.

Shape letters: N images, C channels, B bases, M x M attention, K locations or instances.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmcv.ops import batched_nms
from mmdet.models.dense_heads import FCOSHead
from mmdet.models.utils import filter_scores_and_topk, multi_apply
from mmdet.registry import MODELS
from mmdet.utils import ConfigType, InstanceList
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

_LOSS_BBOX = dict(type="GIoULoss", loss_weight=1.0)


class LevelConv(nn.Module):
    """A 3x3 convolution that all levels share, and a normalisation of its own for each.

    Args:
        channels: C, in and out.
        norm_cfg: Of the normalisation.
        num_levels: Levels.
    """

    def __init__(self, channels: int, norm_cfg: ConfigType, num_levels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norms = nn.ModuleList(
            build_norm_layer(norm_cfg, channels)[1] for _ in range(num_levels)
        )

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Map (N, C, H, W) to the same shape; ``level`` counts from the finest."""
        return F.relu(self.norms[level](self.conv(x)))


@MODELS.register_module()
class BlendMaskHead(FCOSHead):
    """FCOS with a top layer, one 3x3 convolution on the box tower, that predicts attention.

    Centreness is on the box tower, box sides are a ReLU in units of the stride, and locations are
    sampled around the centres, as in the authors' FCOS. The top layer is evaluated only where its
    answer is used, at positive locations and at detections: on all levels it would cost as much
    as three of the towers' convolutions, for answers that are thrown away.

    Args:
        num_classes: Classes of things.
        in_channels: C.
        num_bases: B.
        attention_size: M.
        num_shared_convs: Convolutions before the two towers; with ``stacked_convs=0`` there are
            no towers of their own, and both branches and the top layer read the shared one.
        norm_per_level: Each level has a normalisation of its own (for batch normalisation, whose
            statistics differ between levels).
        use_scale: A learnt factor of the boxes for each level.
        center_sampling: See :class:`FCOSHead`.
        conv_bias: See :class:`FCOSHead`.
        loss_bbox: See :class:`FCOSHead`.
        **kwargs: Of :class:`FCOSHead`.

    Raises:
        ValueError: The tower of a branch begins with another number of channels than it reads.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        num_bases: int = 4,
        attention_size: int = 14,
        num_shared_convs: int = 0,
        norm_per_level: bool = False,
        use_scale: bool = False,
        center_sampling: bool = True,
        conv_bias: bool | str = True,
        loss_bbox: ConfigType = _LOSS_BBOX,
        **kwargs,
    ) -> None:
        self.num_bases = num_bases
        self.attention_size = attention_size
        self.num_shared_convs = num_shared_convs
        self.norm_per_level = norm_per_level
        self.use_scale = use_scale
        super().__init__(
            num_classes,
            in_channels,
            center_sampling=center_sampling,
            norm_on_bbox=True,
            centerness_on_reg=True,
            conv_bias=conv_bias,
            loss_bbox=loss_bbox,
            **kwargs,
        )
        one_width = norm_per_level or num_shared_convs or not self.stacked_convs
        if one_width and in_channels != self.feat_channels:
            raise ValueError(
                "a head with shared convolutions, without towers or with a normalisation per "
                f"level needs in_channels = feat_channels, got {in_channels} and "
                f"{self.feat_channels}"
            )

    def _init_layers(self) -> None:
        super()._init_layers()
        self.shared_convs = nn.ModuleList(
            ConvModule(
                self.in_channels,
                self.feat_channels,
                3,
                padding=1,
                conv_cfg=self.conv_cfg,
                norm_cfg=self.norm_cfg,
                bias=self.conv_bias,
            )
            for _ in range(self.num_shared_convs)
        )
        if self.norm_per_level:
            for name in ("shared_convs", "cls_convs", "reg_convs"):
                convs = (
                    LevelConv(self.feat_channels, self.norm_cfg, len(self.strides))
                    for _ in getattr(self, name)
                )
                setattr(self, name, nn.ModuleList(convs))
        if not self.use_scale:
            self.scales = nn.ModuleList(nn.Identity() for _ in self.strides)
        attention = self.num_bases * self.attention_size**2
        self.top_layer = nn.Conv2d(self.feat_channels, attention, 3, padding=1)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Classes, boxes, centreness, and what the attention is computed from.

        Args:
            x: One (N, C, H, W) for each stride.

        Returns:
            By level: class logits (N, classes, H, W), box sides (N, 4, H, W), in pixels in
            evaluation and in strides in training, centreness logits (N, 1, H, W), and features
            (N, C, H, W) for :meth:`attention`.
        """
        return multi_apply(self.forward_single, x, self.scales, self.strides, range(len(x)))

    def forward_single(
        self, x: Tensor, scale: nn.Module, stride: int, level: int
    ) -> tuple[Tensor, ...]:
        """One level of :meth:`forward`."""
        x = _run(self.shared_convs, x, level)
        cls_feat = _run(self.cls_convs, x, level)
        reg_feat = _run(self.reg_convs, x, level)
        # In float32, for in half precision a box may overflow.
        sides = scale(self.conv_reg(reg_feat)).float().clamp(min=0)
        if not self.training:
            sides = sides * stride
        return self.conv_cls(cls_feat), sides, self.conv_centerness(reg_feat), reg_feat

    def attention(self, features: Sequence[Tensor], levels: Tensor, places: Tensor) -> Tensor:
        """Evaluate the top layer at some locations.

        Args:
            features: The fourth output of :meth:`forward`.
            levels: (K,) indices of levels, int64.
            places: (K,) places in a level, int64: (n * H + y) * W + x for the image n.

        Returns:
            (K, B, M, M) logits.
        """
        patches = features[0].new_zeros((len(levels), features[0].shape[1], 3, 3))
        for level, feature in enumerate(features):
            here = (levels == level).nonzero()[:, 0]
            patches = patches.index_copy(0, here, _neighbourhoods(feature, places[here]))
        weight = self.top_layer.weight.flatten(1)
        attention = F.linear(patches.flatten(1), weight, self.top_layer.bias)
        return attention.unflatten(1, (self.num_bases, self.attention_size, self.attention_size))

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        centernesses: list[Tensor],
        features: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: InstanceList | None = None,
    ) -> dict[str, Tensor]:
        """FCOS's losses; :meth:`get_positive_infos` then has what the mask loss needs.

        Args:
            cls_scores: As :meth:`forward` returns them, and so the next three.
            bbox_preds: Box sides.
            centernesses: Centreness logits.
            features: For the attention.
            batch_gt_instances: ``bboxes`` and ``labels`` of each image.
            batch_img_metas: Not used.
            batch_gt_instances_ignore: Not used: crowds are background.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_centerness``.
        """
        losses = super().loss_by_feat(
            cls_scores,
            bbox_preds,
            centernesses,
            batch_gt_instances,
            batch_img_metas,
            batch_gt_instances_ignore,
        )
        self._raw_positive_infos.update(features=features, gt_instances=batch_gt_instances)
        return losses

    def get_targets(
        self, points: list[Tensor], batch_gt_instances: InstanceList
    ) -> tuple[list[Tensor], list[Tensor]]:
        """FCOS's targets, remembering which instance each location belongs to.

        Args:
            points: (H * W, 2) of each level.
            batch_gt_instances: ``bboxes`` and ``labels`` of each image.

        Returns:
            By level: labels (N * H * W,), and box sides (N * H * W, 4) in strides.
        """
        # FCOSHead hands labels through. Numbers of instances, counted through the batch, in
        # their place tell both; they begin beyond the label of the background.
        first = self.num_classes + 1
        numbered, count = [], 0
        for gt in batch_gt_instances:
            numbers = torch.arange(count, count + len(gt), device=gt.labels.device) + first
            numbered.append(InstanceData(bboxes=gt.bboxes, labels=numbers))
            count += len(gt)
        numbers, sides = super().get_targets(points, numbered)
        # The background becomes -1, the last.
        matched = [level - first for level in numbers]
        background = batch_gt_instances[0].labels.new_tensor([self.num_classes])
        labels = torch.cat([gt.labels for gt in batch_gt_instances] + [background])
        self._raw_positive_infos = dict(matched=matched, sides=sides)
        return [labels[level] for level in matched], sides

    def get_positive_infos(self) -> InstanceList:
        """Return what the last loss found positive, and forget it.

        Returns:
            For each image, with K locations: ``bboxes`` (K, 4) of their ground truth in pixels,
            ``gt_index`` (K,) its place in the image's ground truth, ``centerness`` (K,) the
            target, ``attention`` (K, B, M, M).
        """
        infos, self._raw_positive_infos = self._raw_positive_infos, {}
        places = [(level >= 0).nonzero()[:, 0] for level in infos["matched"]]
        levels = [torch.full_like(place, level) for level, place in enumerate(places)]
        matched = torch.cat([m[p] for m, p in zip(infos["matched"], places, strict=True)])
        sides = torch.cat([s[p] for s, p in zip(infos["sides"], places, strict=True)])
        attention = self.attention(infos["features"], torch.cat(levels), torch.cat(places))
        centerness = self.centerness_target(sides)
        result, first = [], 0
        for gt in infos["gt_instances"]:
            here = (matched >= first) & (matched < first + len(gt))
            index = matched[here] - first
            first += len(gt)
            result.append(
                InstanceData(
                    bboxes=gt.bboxes[index],
                    gt_index=index,
                    centerness=centerness[here],
                    attention=attention[here],
                )
            )
        return result

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        centernesses: list[Tensor],
        features: list[Tensor],
        batch_img_metas: list[dict],
        cfg: ConfigDict | None = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> InstanceList:
        """Detect, and compute the attention of what is detected.

        The score is the square root of class times centreness; ``score_thr`` applies to the
        product. Boxes are not clipped: bases are pooled from whole boxes.

        Args:
            cls_scores: As :meth:`forward` returns them, and so the next three.
            bbox_preds: Box sides.
            centernesses: Centreness logits.
            features: For the attention.
            batch_img_metas: ``scale_factor``, for ``rescale``.
            cfg: ``score_thr``, ``nms_pre``, ``nms``, ``max_per_img``; default: ``test_cfg``.
            rescale: Boxes are those of the original image, otherwise of the resized one.
            with_nms: Suppress the overlapping ones of a class.

        Returns:
            For each image, by score: ``bboxes`` (K, 4), ``scores``, ``labels`` (K,), and
            ``attention`` (K, B, M, M).
        """
        results = super().predict_by_feat(
            cls_scores, bbox_preds, centernesses, batch_img_metas, cfg, rescale, with_nms
        )
        sizes = torch.tensor([f.shape[-2:].numel() for f in features])
        for number, result in enumerate(results):
            levels, places = result.pop("levels"), result.pop("places")
            places = places + number * sizes.to(levels.device)[levels]
            result.attention = self.attention(features, levels, places)
        return results

    def _predict_by_feat_single(
        self,
        cls_score_list: list[Tensor],
        bbox_pred_list: list[Tensor],
        score_factor_list: list[Tensor],
        mlvl_priors: list[Tensor],
        img_meta: dict,
        cfg: ConfigDict | None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> InstanceData:
        cfg = copy.deepcopy(self.test_cfg if cfg is None else cfg)
        candidates = []
        levels = zip(cls_score_list, bbox_pred_list, score_factor_list, mlvl_priors, strict=True)
        for level, (cls_score, sides, centerness, points) in enumerate(levels):
            # In float32: half precision has too few digits to tell scores apart.
            flat = [
                m.float().permute(1, 2, 0).flatten(0, 1) for m in (cls_score, sides, centerness)
            ]
            products = flat[0].sigmoid() * flat[2].sigmoid()
            scores, labels, places, kept = filter_scores_and_topk(
                products, cfg.score_thr, cfg.nms_pre, dict(sides=flat[1], points=points)
            )
            candidates.append(
                InstanceData(
                    bboxes=self.bbox_coder.decode(kept["points"], kept["sides"], max_shape=None),
                    scores=scores.sqrt(),
                    labels=labels,
                    places=places,
                    levels=torch.full_like(places, level),
                )
            )
        return self._bbox_post_process(
            InstanceData.cat(candidates), cfg, rescale, with_nms, img_meta
        )

    def _bbox_post_process(
        self,
        results: InstanceData,
        cfg: ConfigDict,
        rescale: bool = False,
        with_nms: bool = True,
        img_meta: dict | None = None,
    ) -> InstanceData:
        results = super()._bbox_post_process(results, cfg, rescale, False, img_meta)
        if not with_nms or len(results) == 0:
            return results
        # Class by class: the usual trick, an offset for each class, takes coordinates to be
        # positive, and these boxes may leave the image; and it costs digits.
        kept = []
        for label in results.labels.unique():
            same = results[results.labels == label]
            boxes, index = batched_nms(
                same.bboxes, same.scores, same.labels, cfg.nms, class_agnostic=True
            )
            same = same[index]
            # Some kinds of NMS lower the scores.
            same.scores = boxes[:, -1]
            kept.append(same)
        results = InstanceData.cat(kept)
        order = results.scores.argsort(descending=True, stable=True)
        return results[order[: cfg.max_per_img]]


def _run(convs: nn.ModuleList, x: Tensor, level: int) -> Tensor:
    for conv in convs:
        x = conv(x, level) if isinstance(conv, LevelConv) else conv(x)
    return x


def _neighbourhoods(feature: Tensor, places: Tensor) -> Tensor:
    """Cut (K, C, 3, 3) around places (K,) of (N, C, H, W), with zeros beyond the border."""
    _, _, rows, cols = feature.shape
    image, place = places // (rows * cols), places % (rows * cols)
    step = torch.arange(3, device=places.device)
    y = (place // cols)[:, None] + step
    x = (place % cols)[:, None] + step
    padded = F.pad(feature, (1, 1, 1, 1))
    return padded[image[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
