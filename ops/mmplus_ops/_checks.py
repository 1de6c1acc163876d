"""Checks of arguments that the ops share: a wrong one is named, with what was expected."""

from torch import Tensor


def check_feature_map(value: Tensor, name: str = "input") -> None:
    """Raise unless ``value`` is a floating-point (N, C, H, W) tensor."""
    _check_floating(value, name)
    if value.dim() != 4:
        raise ValueError(f"{name} must be (N, C, H, W), got shape {tuple(value.shape)}")


def check_rois(rois: Tensor, features: Tensor) -> None:
    """Raise unless ``rois`` is (K, 5), beside ``features``, with batch indices inside it."""
    _check_floating(rois, "rois")
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            f"rois must be (K, 5): batch index, x1, y1, x2, y2; got shape {tuple(rois.shape)}"
        )
    _check_device(rois, "rois", features)
    # Reading the values would stall a GPU; there the indexing itself checks.
    if rois.device.type == "cpu" and len(rois):
        low, high = float(rois[:, 0].min()), float(rois[:, 0].max())
        if not (low >= 0 and high < len(features)):
            raise ValueError(
                f"batch indices of rois must lie in [0, {len(features)}), got {low:g} to {high:g}"
            )


def check_prob(prob: Tensor, rois: Tensor) -> None:
    """Raise unless ``prob`` is (K, Hp, Wp) with one map per RoI."""
    _check_floating(prob, "prob")
    if prob.dim() != 3 or len(prob) != len(rois) or 0 in prob.shape[1:]:
        raise ValueError(
            f"prob must be ({len(rois)}, Hp, Wp), one non-empty map per RoI; "
            f"got shape {tuple(prob.shape)}"
        )
    _check_device(prob, "prob", rois)


def check_output_size(output_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) of an output size; raise unless both are positive integers."""
    pair = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"output_size must be one or two positive integers, got {output_size}")
    return pair


def _check_floating(value: Tensor, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")


def _check_device(value: Tensor, name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise TypeError(f"{name} must be on {other.device} like the others, got {value.device}")
