"""From mmdet's Mask R-CNN to MR R-CNN."""

from collections.abc import Mapping

from torch import Tensor

_BOX, _MASK = "roi_head.bbox_head.", "roi_head.mask_head."
_REFINING = {_BOX: "roi_head.refining_bbox_head.", _MASK: "roi_head.refining_mask_head."}
_FUSION = "roi_head.fusion."
_FIRST_CONV = _MASK + "convs.0.conv.weight"


def is_plain_mask_rcnn(state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are those of a Mask R-CNN without a refining module."""
    names = tuple(state_dict)
    return (
        any(name.startswith(_BOX) for name in names)
        and _FIRST_CONV in state_dict
        and not any(name.startswith(tuple(_REFINING.values())) for name in names)
    )


def refining_module(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The refining module as the heads of a trained Mask R-CNN initialise it (section 4.1).

    The 1x1 convolution that brings F^- into the refining mask head has no model in Mask R-CNN;
    it starts at zero, so that the refining mask head starts out as the trained mask head.

    Args:
        state_dict: Parameters by name, of an mmdet ``MaskRCNN``.

    Returns:
        The parameters that MR R-CNN has beyond those, in tensors of their own.

    Raises:
        ValueError: The names are not those of a Mask R-CNN with a box and a mask head, or the
            refining module is there already.
    """
    if not is_plain_mask_rcnn(state_dict):
        found = ", ".join(sorted({".".join(name.split(".")[:2]) for name in state_dict})[:12])
        raise ValueError(
            f"not a plain Mask R-CNN: expected parameters {_BOX}* and {_MASK}convs.*, and none "
            f"of a refining module; found {found or 'none at all'}"
        )
    module = {
        target + name.removeprefix(source): value.clone()
        for name, value in state_dict.items()
        for source, target in _REFINING.items()
        if name.startswith(source)
    }
    convs = [name for name in state_dict if name.startswith(_MASK + "convs.")]
    last = max(int(name.removeprefix(_MASK + "convs.").split(".")[0]) for name in convs)
    features = state_dict[f"{_MASK}convs.{last}.conv.weight"].shape[0]
    inputs = state_dict[_FIRST_CONV].shape[1]
    module[_FUSION + "weight"] = state_dict[_FIRST_CONV].new_zeros(inputs, features, 1, 1)
    module[_FUSION + "bias"] = state_dict[_FIRST_CONV].new_zeros(inputs)
    return module


def mask_rcnn_to_mr_rcnn(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the parameters of a trained Mask R-CNN into those of MR R-CNN.

    Args:
        state_dict: Parameters by name, of an mmdet ``MaskRCNN``.

    Returns:
        All of them, and those of :func:`refining_module`. Tensors are cloned, none is shared.

    Raises:
        ValueError: As :func:`refining_module` does.
    """
    own = refining_module(state_dict)
    return {name: value.clone() for name, value in state_dict.items()} | own
