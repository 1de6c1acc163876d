"""Blending of bases by attention (BlendMask, section 3.1).

Shape letters: N images, B bases, Hb x Wb their size, K RoIs, M x M attention, R x R output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_attention, check_feature_map, check_images, check_positive, check_rois
from ._registration import define, differentiate, takes_operator
from .shape_aware_roi_align import plain_shape_aware_roi_align


def blend_bases(
    bases: Tensor,
    rois: Tensor,
    attention: Tensor,
    output_size: int = 56,
    spatial_scale: float = 0.25,
    sampling_ratio: int = 1,
) -> Tensor:
    """Pool the bases of each RoI, and add them up in the shares that its attention gives them.

    With ``r_b`` the RoIAlign (``aligned=True``) of base b and ``s_b`` the softmax over the bases of
    the attention, enlarged bilinearly (``align_corners=False``) to R x R, the result is the sum of
    ``s_b * r_b``. No (K, B, R, R) tensor is held, and equal RoIs are pooled once. Differentiable in
    ``bases`` and ``attention``. Half precision is summed in float32.

    Args:
        bases: (N, B, Hb, Wb), floating point.
        rois: (K, 5) as (batch index, x1, y1, x2, y2) in image pixels; they may leave the image.
            Inverted RoIs and RoIs with a coordinate that is not finite pool 0.
        attention: (K, B, M, M) logits.
        output_size: R.
        spatial_scale: Cells of the bases per image pixel.
        sampling_ratio: Points per bin and axis; 0: about one per cell.

    Returns:
        (K, R, R) logits, of the type of ``bases``.

    Raises:
        TypeError: A tensor is not floating point, or devices do not fit.
        ValueError: A shape is wrong, or a batch index lies outside [0, N).
    """
    check_feature_map(bases, "bases")
    check_rois(rois, bases)
    check_attention(attention, rois, bases)
    check_positive(output_size, "output_size")
    arguments = (bases, rois, attention, output_size, float(spatial_scale), int(sampling_ratio))
    if takes_operator(bases):
        return _operator(*arguments)
    check_images(rois, len(bases))
    return plain_blend_bases(*arguments)


def plain_blend_bases(
    bases: Tensor,
    rois: Tensor,
    attention: Tensor,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """:func:`blend_bases` in plain PyTorch, with (K, B, R, R) tensors."""
    dtype = torch.promote_types(bases.dtype, torch.float32)
    pooled = plain_shape_aware_roi_align(
        bases.to(dtype),
        rois,
        bases.new_ones((len(rois), 1, 1), dtype=dtype),
        output_size,
        output_size,
        spatial_scale,
        sampling_ratio,
        True,
    )
    if len(rois) == 0:
        # Interpolation refuses empty batches; tied to the attention all the same.
        return (pooled.sum(1) + attention.sum().to(dtype) * 0).to(bases.dtype)
    size = (output_size, output_size)
    logits = F.interpolate(attention.to(dtype), size, mode="bilinear", align_corners=False)
    return (pooled * logits.softmax(1)).sum(1).to(bases.dtype)


def _fake(bases, rois, attention, output_size, spatial_scale, sampling_ratio):
    return bases.new_empty((rois.shape[0], output_size, output_size))


def _fake_backward(grad, bases, rois, attention, spatial_scale, sampling_ratio):
    return bases.new_empty(bases.shape), attention.new_empty(attention.shape)


def _plain_backward(grad, bases, rois, attention, spatial_scale, sampling_ratio):
    """The gradients by the chain rule, as this runs below autograd."""
    dtype = torch.promote_types(bases.dtype, torch.float32)
    size = grad.shape[1]
    ones = bases.new_ones((len(rois), 1, 1), dtype=dtype)
    where = (size, size, spatial_scale, sampling_ratio, True)
    if len(rois) == 0:
        return bases.new_zeros(bases.shape), attention.new_zeros(attention.shape)
    pooled = plain_shape_aware_roi_align(bases.to(dtype), rois, ones, *where)
    logits = F.interpolate(attention.to(dtype), (size, size), mode="bilinear", align_corners=False)
    shares = logits.softmax(1)
    weighted = shares * grad[:, None].to(dtype)
    blended = (shares * pooled).sum(1, keepdim=True)
    bases_grad, _ = torch.ops.mmplus.shape_aware_roi_align_backward(
        weighted, bases.to(dtype), rois, ones, bases.shape, *where[2:], True, False
    )
    attention_grad = torch.ops.aten.upsample_bilinear2d_backward(
        weighted * (pooled - blended), (size, size), attention.shape, False
    )
    return bases_grad.to(bases.dtype), attention_grad.to(attention.dtype).contiguous()


def _setup_context(ctx, inputs, output):
    bases, rois, attention, _, ctx.spatial_scale, ctx.sampling_ratio = inputs
    ctx.save_for_backward(bases, rois, attention)


def _backward(ctx, grad):
    bases_grad, attention_grad = torch.ops.mmplus.blend_bases_backward(
        grad, *ctx.saved_tensors, ctx.spatial_scale, ctx.sampling_ratio
    )
    return bases_grad, None, attention_grad, None, None, None


_operator = define(
    "blend_bases(Tensor bases, Tensor rois, Tensor attention, int output_size, "
    "float spatial_scale, int sampling_ratio) -> Tensor",
    fake=_fake,
    plain=plain_blend_bases,
)
define(
    "blend_bases_backward(Tensor grad, Tensor bases, Tensor rois, Tensor attention, "
    "float spatial_scale, int sampling_ratio) -> (Tensor, Tensor)",
    fake=_fake_backward,
    plain=_plain_backward,
)
differentiate("blend_bases", _backward, _setup_context)
