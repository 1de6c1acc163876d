"""Checks of arguments that the ops share: a wrong one is named, with what was expected."""

from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Sizes are read from ``shape``: ``len`` would fix the size of an exported graph.


def check_feature_map(value: Tensor, name: str = "input") -> None:
    """Raise unless ``value`` is a floating-point (N, C, H, W) tensor."""
    _check_floating(value, name)
    if value.dim() != 4:
        raise ValueError(f"{name} must be (N, C, H, W), got shape {tuple(value.shape)}")


def check_rois(rois: Tensor, beside: Tensor, count: int | None = None) -> None:
    """Raise unless ``rois`` is (K, 5) on the device of ``beside``, with K = ``count`` if given."""
    _check_floating(rois, "rois")
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            f"rois must be (K, 5): batch index, x1, y1, x2, y2; got shape {tuple(rois.shape)}"
        )
    if count is not None and rois.shape[0] != count:
        raise ValueError(f"rois must be ({count}, 5), got shape {tuple(rois.shape)}")
    _check_device(rois, "rois", beside)


def check_images(rois: Tensor, images: int) -> None:
    """Raise where a batch index of ``rois`` lies outside [0, images), if they are on the CPU.

    Reading the values would stall a GPU, so there the op must do without.
    """
    if rois.device.type == "cpu" and rois.shape[0]:
        low, high = float(rois[:, 0].min()), float(rois[:, 0].max())
        if not (low >= 0 and high < images):
            raise ValueError(
                f"batch indices of rois must lie in [0, {images}), got {low:g} to {high:g}"
            )


def check_prob(prob: Tensor, rois: Tensor) -> None:
    """Raise unless ``prob`` is (K, Hp, Wp) with one map per RoI."""
    _check_floating(prob, "prob")
    if prob.dim() != 3 or prob.shape[0] != rois.shape[0] or 0 in prob.shape[1:]:
        raise ValueError(
            f"prob must be ({rois.shape[0]}, Hp, Wp), one non-empty map per RoI; "
            f"got shape {tuple(prob.shape)}"
        )
    _check_device(prob, "prob", rois)


def check_attention(attention: Tensor, rois: Tensor, bases: Tensor) -> None:
    """Raise unless ``attention`` is (K, B, M, M) for K RoIs and B bases."""
    _check_floating(attention, "attention")
    shape = tuple(attention.shape)
    expected = (rois.shape[0], bases.shape[1])
    if len(shape) != 4 or shape[:2] != expected or shape[2] != shape[3]:
        raise ValueError(
            f"attention must be ({expected[0]}, {expected[1]}, M, M), got shape {shape}"
        )
    if 0 in shape[1:]:
        raise ValueError(f"attention must have bases and cells, got shape {shape}")
    _check_device(attention, "attention", rois)


def check_masks(masks: Tensor) -> None:
    """Raise unless ``masks`` is (K, m, m), floating point."""
    _check_floating(masks, "masks")
    if masks.dim() != 3 or 0 in masks.shape[1:]:
        raise ValueError(
            f"masks must be (K, m, m), one non-empty map per RoI; got shape {tuple(masks.shape)}"
        )


def check_labels(labels: Tensor, rois: Tensor) -> None:
    """Raise unless ``labels`` is (K,) of a whole-number type."""
    _check_whole(labels, "labels")
    if labels.shape != rois.shape[:1]:
        raise ValueError(f"labels must be ({rois.shape[0]},), got shape {tuple(labels.shape)}")
    _check_device(labels, "labels", rois)


def check_mask_planes(masks: Tensor, beside: Tensor | None = None, only_bool: bool = False) -> None:
    """Raise unless ``masks`` is (N, H, W) bool or uint8, of the size of the image ``beside``."""
    _check_tensor(masks, "masks")
    if masks.dtype is not torch.bool and (only_bool or masks.dtype is not torch.uint8):
        kinds = "bool" if only_bool else "bool or uint8"
        raise TypeError(f"masks must be {kinds}, got {masks.dtype}")
    if masks.dim() != 3:
        raise ValueError(f"masks must be (N, H, W), got shape {tuple(masks.shape)}")
    if beside is not None:
        if masks.shape[1:] != beside.shape[:2]:
            raise ValueError(
                f"masks must be (N, {beside.shape[0]}, {beside.shape[1]}) like the image, got "
                f"shape {tuple(masks.shape)}"
            )
        _check_device(masks, "masks", beside)


def check_image(image: Tensor) -> None:
    """Raise unless ``image`` is (H, W, 3) uint8."""
    _check_tensor(image, "image")
    if image.dtype is not torch.uint8:
        raise TypeError(f"image must be uint8, got {image.dtype}")
    if image.dim() != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3), got shape {tuple(image.shape)}")


def check_boxes(boxes: Tensor, mask_index: Tensor, masks: Tensor) -> None:
    """Raise unless ``boxes`` (P, 4) lie inside the image and ``mask_index`` (P,) in the masks."""
    for value, name in ((boxes, "boxes"), (mask_index, "mask_index")):
        _check_tensor(value, name)
        if value.dtype is not torch.int64:
            raise TypeError(f"{name} must be int64, got {value.dtype}")
        _check_device(value, name, masks)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (P, 4), got shape {tuple(boxes.shape)}")
    if mask_index.shape != boxes.shape[:1]:
        raise ValueError(
            f"mask_index must be ({boxes.shape[0]},), got shape {tuple(mask_index.shape)}"
        )
    # A graph and a tensor without data have no values to look at.
    if torch.compiler.is_compiling() or boxes.is_meta or boxes.shape[0] == 0:
        return
    count, rows, cols = masks.shape
    x1, y1, x2, y2 = boxes.unbind(1)
    wrong = (x1 < 0) | (y1 < 0) | (x2 > cols) | (y2 > rows) | (x1 >= x2) | (y1 >= y2)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"boxes must be non-empty and inside the image of {rows} x {cols}, got "
            f"{boxes[row].tolist()} in row {row}"
        )
    outside = (mask_index < 0) | (mask_index >= count)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"mask_index must lie in [0, {count}), got {int(mask_index[row])} in row {row}"
        )


def check_patches(patches: Tensor, boxes: Tensor) -> None:
    """Raise unless ``patches`` is (P, h, w), floating point, for P boxes."""
    _check_floating(patches, "patches")
    count, shape = boxes.shape[0], tuple(patches.shape)
    if len(shape) != 3 or shape[0] != count:
        raise ValueError(f"patches must be ({count}, h, w), got shape {shape}")
    if 0 in shape[1:] and count:
        raise ValueError(f"patches must have pixels, got shape {shape}")
    _check_device(patches, "patches", boxes)


def check_uncertainty(uncertainty: Tensor, masks: Tensor) -> None:
    """Raise unless ``uncertainty`` is floating point, of the shape and on the device of masks."""
    _check_floating(uncertainty, "uncertainty")
    if uncertainty.shape != masks.shape:
        raise ValueError(
            f"uncertainty must be {tuple(masks.shape)} like masks, got shape "
            f"{tuple(uncertainty.shape)}"
        )
    _check_device(uncertainty, "uncertainty", masks)


def check_label_map(labels: Tensor) -> None:
    """Raise unless ``labels`` is (H, W) of a whole-number type, below 2^31 pixels."""
    _check_whole(labels, "labels")
    if labels.dim() != 2:
        raise ValueError(f"labels must be (H, W), got shape {tuple(labels.shape)}")
    if labels.numel() >= 2**31:
        raise ValueError(f"labels must have fewer than 2^31 pixels, got {labels.numel()}")


def check_id_maps(first: Tensor, second: Tensor) -> None:
    """Raise unless both are maps, (H, W) int32 or (H, 1 + 3 W) uint8, of one size and device."""
    sizes = []
    for value, name in ((first, "first"), (second, "second")):
        _check_tensor(value, name)
        if value.dtype not in (torch.int32, torch.uint8):
            raise TypeError(f"{name} must be int32, or uint8 scanlines, got {value.dtype}")
        shape = tuple(value.shape)
        filtered = value.dtype is torch.uint8
        if len(shape) != 2 or (filtered and shape[1] % 3 != 1):
            expected = "(H, 1 + 3 W) as uint8" if filtered else "(H, W)"
            raise ValueError(f"{name} must be {expected}, got shape {shape}")
        sizes.append((shape[0], shape[1] // 3) if filtered else shape)
    if sizes[0] != sizes[1]:
        raise ValueError(f"first and second must be of one size, not {sizes[0]} and {sizes[1]}")
    _check_device(second, "second", first)


def check_positive(value: int, name: str, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``, below 2^31."""
    if not _is_whole(value) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if value >= 2**31:
        raise ValueError(f"{name} must be below 2^31, got {value}")


def check_output_size(
    output_size: int | tuple[int, int], name: str = "output_size"
) -> tuple[int, int]:
    """Return (H, W) of an output size; raise unless both are positive integers."""
    several = isinstance(output_size, (tuple, list))
    pair = tuple(output_size) if several else (output_size, output_size)
    if len(pair) != 2 or not all(_is_whole(n) and 0 < n < 2**31 for n in pair):
        raise ValueError(f"{name} must be one or two positive integers, got {output_size!r}")
    return pair


def _is_whole(value: Any) -> bool:
    # Sizes of a graph with dynamic shapes are symbols.
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _check_tensor(value: Tensor, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def _check_floating(value: Tensor, name: str) -> None:
    _check_tensor(value, name)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be floating point of 16 to 64 bits, got {value.dtype}")


def _check_whole(value: Tensor, name: str) -> None:
    _check_tensor(value, name)
    if value.is_floating_point() or value.is_complex():
        raise TypeError(f"{name} must be of a whole-number type, got {value.dtype}")


def _check_device(value: Tensor, name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise TypeError(f"{name} must be on {other.device} like the others, got {value.device}")
