"""The fusers that are compared on one panoptic model: what it hands them, and how they are made.

Shape letters: K instances, C channels of the semantics, H x W the image.
"""

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmdet.models.seg_heads.panoptic_fusion_heads import (
    BasePanopticFusionHead,
    MaskFormerFusionHead,
)
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from mmdet_plus.engine.errors import UserError
from mmdet_plus.panoptic_fusion import HeuristicFusion
from mmseg_plus.common.config import read_config

# What a fuser must have of the instances, by the name under which it is compared unasked.
_DEFAULTS = {
    "heuristic": ("HeuristicFusion", "masks"),
    "spatial_ranking": ("SpatialRankingFusion", "ranking_scores"),
    "occlusion": ("OcclusionFusion", "occlusion"),
    "soft_occlusion": ("SoftOcclusionFusion", "occlusion"),
}
# Settings beside those of ``test_cfg``.
_TOLD = ("occlusion_thr", "sigma")


class Seen(NamedTuple):
    """What a model hands its fuser of one image.

    Attributes:
        results: ``masks`` (K, H, W), ``scores``, ``labels``, and what further heads have put there.
        seg_logits: (C, H, W).
        stuff_channels: The channels of stuff among C; None where the fuser is to find out.
    """

    results: InstanceData
    seg_logits: Tensor
    stuff_channels: Sequence[int] | None = None


class RecordingFusionHead(nn.Module):
    """Takes the place of a model's fuser and notes what it is given.

    What it returns is void everywhere: fusing comes later.

    Args:
        num_classes: Classes of things and stuff.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self._seen: list[Seen] = []

    def predict(
        self,
        mask_results_list: Sequence[InstanceData],
        seg_preds_list: Sequence[Tensor],
        **kwargs: Any,
    ) -> list[PixelData]:
        """As mmdet's two-stage models call their fusers."""
        return [
            self._note(Seen(results, logits))
            for results, logits in zip(mask_results_list, seg_preds_list, strict=True)
        ]

    def fuse(
        self, results: InstanceData, seg_logits: Tensor, stuff_channels: Sequence[int]
    ) -> PixelData:
        """As BlendMask calls its fuser."""
        return self._note(Seen(results, seg_logits, stuff_channels))

    def take(self) -> list[Seen]:
        """The notes since the last time, image by image; they are not kept."""
        seen, self._seen = self._seen, []
        return seen

    def _note(self, seen: Seen) -> PixelData:
        self._seen.append(seen)
        void = seen.seg_logits.new_full((1, *seen.seg_logits.shape[1:]), self.num_classes)
        return PixelData(sem_seg=void.int())


def own_fuser(model: nn.Module, source: str) -> BasePanopticFusionHead:
    """Find a model's fuser, which combines instances with semantics.

    Args:
        model: The detector.
        source: Its config's name, for messages.

    Raises:
        UserError: It has none.
    """
    own = getattr(model, "panoptic_fusion_head", None)
    if own is None or isinstance(own, MaskFormerFusionHead):
        raise UserError(
            f"{source}: {type(model).__name__} has no panoptic fuser that combines instances with "
            "semantics; give a panoptic model such as PanopticFPN, REFINE or a panoptic BlendMask"
        )
    return own


def read_fusers(path: str) -> dict[str, dict[str, Any]]:
    """Read a file of fusers.

    Args:
        path: A config file with ``fusers``.

    Returns:
        Configs by name, each with ``type``.

    Raises:
        UserError: The file is missing, or has no fuser in it, or one without a type.
    """
    found = read_config(path).get("fusers")
    if not isinstance(found, dict) or not found:
        raise UserError(
            f"{path}: there is no fuser in it; write "
            "fusers = dict(soft=dict(type='SoftOcclusionFusion', sigma=2.0))"
        )
    for name, config in found.items():
        if not isinstance(config, dict) or "type" not in config:
            raise UserError(
                f"{path}: fuser {name!r} is {config!r}; write it as dict(type='HeuristicFusion')"
            )
    return {name: dict(config) for name, config in found.items()}


def default_fusers(results: InstanceData) -> dict[str, dict[str, Any]]:
    """List the fusers that a model's predictions suffice for.

    Args:
        results: Instances of an image.

    Returns:
        Configs by name; those with Unknown Erasing end in ``_ue``.
    """
    configs: dict[str, dict[str, Any]] = {}
    for name, (kind, field) in _DEFAULTS.items():
        if field in results:
            configs[name] = dict(type=kind)
            configs[f"{name}_ue"] = dict(type=kind, unknown_erasing={})
    return configs


def build_fuser(
    name: str, config: Mapping[str, Any], own: BasePanopticFusionHead
) -> tuple[dict[str, Any], nn.Module]:
    """Build a fuser that fits a model.

    Args:
        name: For messages.
        config: With ``type``.
        own: The model's, which tells what the config leaves out: the numbers of classes and, one
            by one, the settings of ``test_cfg``.

    Returns:
        The completed config, of plain types; the fuser.

    Raises:
        UserError: There is no fuser of that type, or it does not take such settings.
    """
    kind = kind_of(config)
    known = {
        key: part
        for key, part in MODELS.module_dict.items()
        if issubclass(part, BasePanopticFusionHead) and part is not MaskFormerFusionHead
    }
    if kind not in known:
        close = difflib.get_close_matches(kind, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
        raise UserError(f"fuser {name!r}: there is no fuser of the type {kind!r}; {hint}")
    given = dict(config.get("test_cfg") or {})
    inherited = dict(getattr(own, "test_cfg", None) or {})
    if kind == "HeuristicFusionHead" and getattr(own, "things_apart", False):
        raise UserError(
            f"fuser {name!r}: mmdet's {kind} does not know this model's channels of stuff; take "
            "HeuristicFusion"
        )
    if "mask_overlap" in given:
        # One setting with two names, of which the other would win.
        inherited.pop("overlap_thr", None)
    completed = ConfigDict(
        {
            "num_things_classes": own.num_things_classes,
            "num_stuff_classes": own.num_stuff_classes,
            **config,
            "type": kind,
            "test_cfg": {**inherited, **given},
        }
    )
    try:
        fuser = MODELS.build(copy.deepcopy(completed))
    except (TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"fuser {name!r} cannot be built: {reason}") from error
    if isinstance(fuser, HeuristicFusion):
        if fuser.things_apart is None:
            # Semantics of mmdet's own fuser, which cannot tell, have one channel for all things.
            fuser.things_apart = getattr(own, "things_apart", False)
        # What the record is to tell although nobody set it.
        completed.update({key: fuser.settings[key] for key in _TOLD if key in fuser.settings})
        if fuser.unknown_erasing is not None:
            completed.unknown_erasing = vars(fuser.unknown_erasing)
    return completed.to_dict(), fuser


def fuse(name: str, fuser: nn.Module, seen: Seen) -> Tensor:
    """Apply a fuser to one image.

    Args:
        name: For messages.
        fuser: From :func:`build_fuser`.
        seen: Of the image.

    Returns:
        The map, (1, H, W).

    Raises:
        UserError: The fuser needs what the model does not predict, or a setting is out of range.
    """
    if seen.stuff_channels is not None and not isinstance(fuser, HeuristicFusion):
        raise UserError(
            f"fuser {name!r}: {type(fuser).__name__} does not know this model's channels of stuff; "
            "take HeuristicFusion"
        )
    try:
        if seen.stuff_channels is None:
            return fuser.predict([seen.results], [seen.seg_logits])[0].sem_seg
        return fuser.fuse(seen.results, seen.seg_logits, seen.stuff_channels).sem_seg
    except ValueError as error:
        raise UserError(f"fuser {name!r}: {error}") from error


def kind_of(part: Mapping[str, Any]) -> str:
    """The name of a config's type, without scope and module."""
    kind = part["type"]
    kind = kind if isinstance(kind, str) else kind.__name__
    return kind.rpartition(".")[2]
