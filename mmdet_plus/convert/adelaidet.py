"""From AdelaiDet's BlendMask to ours: the same tensors under other names."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[str], str | None]

_HEAD = "proposal_generator.fcos_head."
_TOWERS = {"share_tower": "shared_convs", "cls_tower": "cls_convs", "bbox_tower": "reg_convs"}
_PREDICTORS = {"cls_logits": "conv_cls", "bbox_pred": "conv_reg", "ctrness": "conv_centerness"}
# What makes a checkpoint AdelaiDet's BlendMask on a ResNet with a feature pyramid.
_REQUIRED = (
    "top_layer.weight",
    _HEAD + "cls_logits.weight",
    "basis_module.refine.0.0.weight",
    "backbone.bottom_up.stem.conv1.weight",
    "backbone.bottom_up.res5.0.conv1.weight",
    "backbone.fpn_lateral5.weight",
)
# Settings that detectron2 stores as if they were weights; ours are in `data_preprocessor`.
_SETTINGS = {"pixel_mean", "pixel_std"}


def is_adelaidet_blendmask(state_dict: Mapping[str, Any]) -> bool:
    """Tell whether the names are those of AdelaiDet's BlendMask, whatever its backbone."""
    return {"top_layer.weight", "basis_module.refine.0.0.weight"} <= state_dict.keys()


def adelaidet_blendmask(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the parameters of AdelaiDet's BlendMask into those of ours.

    Instance and panoptic models, on ResNets with or without deformable convolutions, with towers
    shared or not, with one normalisation for all levels or one for each.

    Args:
        state_dict: Parameters by AdelaiDet's names, tensors or arrays.

    Returns:
        Them by the names of a :class:`~mmdet_plus.blendmask.BlendMask`. Tensors are cloned, none
        is shared.

    Raises:
        ValueError: The names are not those of AdelaiDet's BlendMask on a ResNet with a feature
            pyramid.
    """
    missing = [name for name in _REQUIRED if name not in state_dict]
    if missing:
        found = ", ".join(sorted({".".join(name.split(".")[:2]) for name in state_dict})[:12])
        raise ValueError(
            "not a BlendMask of AdelaiDet on a ResNet with a feature pyramid: it lacks "
            f"{', '.join(missing)}; found {found or 'none at all'}"
        )
    names = _names(state_dict)
    return {
        names[name]: torch.as_tensor(value).clone()
        for name, value in state_dict.items()
        if name in names
    }


def adelaidet_unused(state_dict: Mapping[str, Tensor], settings: bool = True) -> list[str]:
    """List the names that :func:`adelaidet_blendmask` has no use for.

    Args:
        state_dict: As there.
        settings: List also ``pixel_mean`` and ``pixel_std``, which are no weights.

    Returns:
        The names, sorted.
    """
    unused = state_dict.keys() - _names(state_dict).keys()
    return sorted(unused if settings else unused - _SETTINGS)


def _names(state_dict: Mapping[str, Any]) -> dict[str, str]:
    """Our name of each of AdelaiDet's that has one."""
    rules = (_backbone, _neck(state_dict), _head(state_dict), _bases(state_dict), _semantic)
    names = {}
    for name in state_dict:
        ours = next(filter(None, (rule(name) for rule in rules)), None)
        if ours:
            names[name] = ours
    return names


def _backbone(name: str) -> str | None:
    if not (found := re.fullmatch(r"backbone\.bottom_up\.(.+?)\.((?:norm\.)?\w+)", name)):
        return None
    place, leaf = found.groups()
    norm = leaf.startswith("norm.")
    leaf = leaf.removeprefix("norm.")
    if place == "stem.conv1":
        return f"backbone.{'bn1' if norm else 'conv1'}.{leaf}"
    if not (found := re.fullmatch(r"res([2-5])\.(\d+)\.(conv\d|conv2_offset|shortcut)", place)):
        return None
    stage, block, part = found.groups()
    block = f"backbone.layer{int(stage) - 1}.{block}"
    if part == "shortcut":
        return f"{block}.downsample.{int(norm)}.{leaf}"
    if part == "conv2_offset":
        return f"{block}.conv2.conv_offset.{leaf}"
    return f"{block}.{part.replace('conv', 'bn') if norm else part}.{leaf}"


def _neck(state_dict: Mapping[str, Any]) -> Rule:
    lowest = min(
        (
            int(found[1])
            for name in state_dict
            if (found := re.match(r"backbone\.fpn_(?:lateral|output)(\d)\.", name))
        ),
        default=3,
    )
    norm = "bn" if "backbone.fpn_lateral5.norm.running_mean" in state_dict else "gn"

    def rule(name: str) -> str | None:
        if found := re.fullmatch(r"backbone\.fpn_(lateral|output)(\d)\.(norm\.)?(\w+)", name):
            kind = "lateral_convs" if found[1] == "lateral" else "fpn_convs"
            layer = norm if found[3] else "conv"
            return f"neck.{kind}.{int(found[2]) - lowest}.{layer}.{found[4]}"
        if found := re.fullmatch(r"backbone\.top_block\.p(\d)\.(weight|bias)", name):
            return f"neck.fpn_convs.{int(found[1]) - lowest}.conv.{found[2]}"
        return None

    return rule


def _head(state_dict: Mapping[str, Any]) -> Rule:
    pattern = re.compile(re.escape(_HEAD) + r"(\w+_tower)\.(\d+)\.(?:(\d+)\.)?(\w+)")
    # Places in the towers' sequences of what is a convolution; a normalisation follows it.
    convs: dict[str, list[int]] = {tower: [] for tower in _TOWERS}
    batch_norms = set()
    for name, value in state_dict.items():
        if found := pattern.fullmatch(name):
            tower, place, _, leaf = found.groups()
            if leaf == "weight" and value.ndim == 4:
                convs.setdefault(tower, []).append(int(place))
            if leaf == "running_mean":
                batch_norms.add((tower, int(place)))

    def rule(name: str) -> str | None:
        if name in ("top_layer.weight", "top_layer.bias"):
            return "bbox_head." + name
        if not name.startswith(_HEAD):
            return None
        part, _, leaf = name.removeprefix(_HEAD).partition(".")
        if part in _PREDICTORS:
            return f"bbox_head.{_PREDICTORS[part]}.{leaf}"
        if part == "scales":
            return f"bbox_head.scales.{leaf}"
        found = pattern.fullmatch(name)
        if not found or found[1] not in _TOWERS:
            return None
        tower, place, level, leaf = found[1], int(found[2]), found[3], found[4]
        order = sorted(convs[tower])
        if place in order and level is None:
            return f"bbox_head.{_TOWERS[tower]}.{order.index(place)}.conv.{leaf}"
        if place - 1 not in order:
            return None
        conv = f"bbox_head.{_TOWERS[tower]}.{order.index(place - 1)}"
        if level is not None:
            return f"{conv}.norms.{level}.{leaf}"
        return f"{conv}.{'bn' if (tower, place) in batch_norms else 'gn'}.{leaf}"

    return rule


def _bases(state_dict: Mapping[str, Any]) -> Rule:
    # The tower: convolutions, an enlargement without weights, one more, the 1x1 convolution.
    last = max(
        (
            int(found[1])
            for name in state_dict
            if (found := re.fullmatch(r"basis_module\.tower\.(\d+)\.weight", name))
        ),
        default=-1,
    )
    places = {f"tower.{last}": "conv_bases", "seg_head.6": "conv_sem"}
    blocks = {f"tower.{i}": f"convs.{i}" for i in range(last - 2)}
    blocks |= {f"tower.{last - 1}": "fine_convs.0"}
    for i, layer in enumerate(("conv", "bn")):
        places |= {f"{theirs}.{i}": f"{ours}.{layer}" for theirs, ours in blocks.items()}
        places |= {f"seg_head.{i}": f"sem_convs.0.{layer}"}
        places |= {f"seg_head.{3 + i}": f"sem_convs.1.{layer}"}

    def rule(name: str) -> str | None:
        if found := re.fullmatch(r"basis_module\.refine\.(\d+)\.([01])\.(\w+)", name):
            level, layer, leaf = found.groups()
            return f"mask_head.bases.level_convs.{level}.{('conv', 'bn')[int(layer)]}.{leaf}"
        if (found := re.fullmatch(r"basis_module\.(.+)\.(\w+)", name)) and found[1] in places:
            return f"mask_head.bases.{places[found[1]]}.{found[2]}"
        return None

    return rule


def _semantic(name: str) -> str | None:
    if found := re.fullmatch(r"panoptic_module\.predictor\.(\w+)", name):
        return f"semantic_head.conv_logits.{found[1]}"
    if found := re.fullmatch(r"panoptic_module\.p(\d)\.(\d+)\.(norm\.)?(\w+)", name):
        level, place, norm, leaf = found.groups()
        conv = f"semantic_head.conv_upsample_layers.{int(level) - 2}.conv.{int(place) // 2}"
        return f"{conv}.{'gn' if norm else 'conv'}.{leaf}"
    return None
