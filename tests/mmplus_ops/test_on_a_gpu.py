"""The CUDA kernels beside the CPU ones: integers the same, floating point to rounding."""

import pytest
import torch
from op_cases import assert_all_close, odd_rois, random_masks, random_rois, with_grads

import mmplus_ops

pytestmark = pytest.mark.cuda
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def floats(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])).to(dtype)


def rois_of(k, size=64.0):
    """Usual ones and odd ones."""
    usual = random_rois(k, 2, size, torch.Generator().manual_seed(k), torch.float32)
    return torch.cat([usual, odd_rois(torch.float32)])


def assert_same_on_the_gpu(function, tensors, rest, upstream):
    """Results and gradients of function(*tensors, *rest), on both devices."""
    expected = with_grads(lambda *x: function(*x, *rest), *tensors, upstream=upstream)
    moved = [value.cuda() if isinstance(value, torch.Tensor) else value for value in rest]
    on_gpu = [value.cuda() for value in tensors]
    ours = with_grads(lambda *x: function(*x, *moved), *on_gpu, upstream=upstream.cuda())
    assert all(value.is_cuda for value in ours)
    step = {torch.float64: 1e-9, torch.float32: 1e-4}.get(tensors[0].dtype, 2e-2)
    assert_all_close([value.cpu() for value in ours], expected, rtol=step, atol=step)


def test_the_kernels_are_in_the_library():
    """Else the plain forms would be tested here."""
    assert mmplus_ops.ops_info()["cuda"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shape_aware_roi_align(dtype, ratio, aligned, layout):
    feature = floats(2, 20, 16, 18, dtype=dtype).contiguous(memory_format=layout)
    rois = rois_of(20)
    prob = floats(len(rois), 7, 9, dtype=dtype).sigmoid()
    assert_same_on_the_gpu(
        lambda f, p, r: mmplus_ops.shape_aware_roi_align(f, r, p, (7, 5), 0.25, ratio, aligned),
        (feature, prob), (rois,), floats(len(rois), 20, 7, 5, dtype=dtype),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", [0, 1])
def test_blend_bases(dtype, ratio):
    rois = rois_of(20)
    bases, attention = floats(2, 4, 16, 18, dtype=dtype), floats(len(rois), 4, 7, 7, dtype=dtype)
    assert_same_on_the_gpu(
        lambda b, a, r: mmplus_ops.blend_bases(b, r, a, 28, 0.25, ratio),
        (bases, attention), (rois,), floats(len(rois), 28, 28, dtype=dtype),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduce", ["max", "sum"])
def test_roi_flatten(dtype, reduce):
    rois = rois_of(40)
    masks = floats(len(rois), 9, 9, dtype=dtype).sigmoid()
    labels = torch.arange(len(rois)) % 3
    assert_same_on_the_gpu(
        lambda m, r, c: mmplus_ops.roi_flatten(m, r, c, 3, 2, (16, 18), 0.25, reduce),
        (masks,), (rois, labels), floats(2, 3, 16, 18, dtype=dtype),
    )  # fmt: skip


def test_ties_of_the_maximum_go_to_the_first():
    masks = torch.full((4, 5, 5), 0.5)
    rois, labels = torch.tensor([[0.0, 0, 0, 20, 20]] * 4), torch.zeros(4, dtype=torch.long)
    assert_same_on_the_gpu(
        lambda m, r, c: mmplus_ops.roi_flatten(m, r, c, 1, 1, 8), (masks,), (rois, labels),
        torch.ones(1, 1, 8, 8),
    )  # fmt: skip


def test_a_roi_of_a_diverged_detector_takes_no_time():
    rois = torch.tensor([[0, -1e9, -1e9, 1e9, 1e9], [0, -1e30, -1e30, 1e30, 1e30]])
    assert_same_on_the_gpu(
        lambda f, p, r: mmplus_ops.shape_aware_roi_align(f, r, p, 7, 0.25),
        (floats(2, 8, 9, 9), torch.ones(2, 7, 7)), (rois,), torch.ones(2, 8, 7, 7),
    )  # fmt: skip


def test_empty_inputs():
    none = torch.zeros(0, 5, device="cuda")
    feature = torch.zeros(2, 4, 8, 8, device="cuda")
    assert mmplus_ops.shape_aware_roi_align(feature, none, none.view(0, 1, 5), 7).shape[0] == 0
    attention = torch.zeros(0, 4, 7, 7, device="cuda")
    assert mmplus_ops.blend_bases(feature, none, attention).shape == (0, 56, 56)
    empty = mmplus_ops.roi_flatten(none.view(0, 1, 5), none, none[:, 0].long(), 3, 2, 8)
    assert empty.shape == (2, 3, 8, 8) and empty.abs().sum() == 0
    one = torch.tensor([[0.0, 0, 0, 4, 4]], device="cuda")
    assert mmplus_ops.blend_bases(
        feature[:, :, :0], one, torch.zeros(1, 4, 7, 7, device="cuda"), 8
    ).abs().sum() == 0  # fmt: skip
    assert mmplus_ops.shape_aware_roi_align(
        feature[:, :, :0], one, torch.ones(1, 7, 7, device="cuda"), 7
    ).abs().sum() == 0  # fmt: skip


@pytest.mark.parametrize("foreground", [1, 255])
@pytest.mark.parametrize("scheme", ["dense", "grid", "instance"])
@pytest.mark.parametrize("budget", [None, 12])
def test_patches_there_and_back(foreground, scheme, budget):
    generator = torch.Generator().manual_seed(0)
    masks = random_masks(5, 90, 150, generator).byte() * foreground
    image = torch.randint(0, 256, (90, 150, 3), generator=generator, dtype=torch.uint8)
    doubt = torch.rand(masks.shape, generator=generator)
    answers = []
    for device in ("cpu", "cuda"):
        here = masks.to(device)
        for uncertainty in (None, doubt.to(device)):
            boxes, index = mmplus_ops.extract_boundary_patches(
                here, 16, 0.25, scheme, budget, uncertainty
            )
            images, crops = mmplus_ops.crop_patches(image.to(device), here, boxes, index, 24, 3)
            patches = torch.rand(len(boxes), 24, 24, generator=torch.Generator().manual_seed(1))
            refined = mmplus_ops.reassemble_patches(here, boxes, index, patches.to(device), 0.5, 3)
            answers.append([value.cpu() for value in (boxes, index, crops, refined, images)])
    for ours, expected in zip(answers[2:], answers[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:4], expected[:4], strict=True))
        torch.testing.assert_close(ours[4], expected[4], rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 90, 150), (1, 1, 1), (0, 5, 5), (3, 0, 5), (2, 7, 31)])
def test_mask_intersections(shape):
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    ours = mmplus_ops.mask_intersections(masks.cuda())
    assert torch.equal(ours.cpu(), mmplus_ops.mask_intersections(masks))


@pytest.mark.parametrize("shape", [(200, 333), (1, 1), (0, 5), (1, 500), (500, 1)])
@pytest.mark.parametrize("ignore", [(), (0,), (-1, 2)])
def test_connected_components(shape, ignore):
    for labels in (2, 5):
        generator = torch.Generator().manual_seed(labels)
        value = torch.randint(0, labels, shape, generator=generator, dtype=torch.uint8)
        ours = mmplus_ops.connected_components(value.cuda(), ignore)
        assert torch.equal(ours.cpu(), mmplus_ops.connected_components(value, ignore))


def test_pair_areas():
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randint(0, 4, (2, 50, 70), generator=generator, dtype=torch.int32)
    scanlines = torch.randint(0, 5, (50, 211), generator=generator, dtype=torch.uint8)
    for maps in ((first, second), (scanlines, second)):
        ours = mmplus_ops.pair_areas(*(value.cuda() for value in maps))
        for found, expected in zip(ours, mmplus_ops.pair_areas(*maps), strict=True):
            assert torch.equal(found.cpu(), expected)


def test_wrong_places_are_named():
    masks = torch.zeros(1, 9, 9, dtype=torch.bool, device="cuda")
    boxes = torch.tensor([[0, 0, 10, 4]], device="cuda")
    with pytest.raises(ValueError, match="inside the image"):
        mmplus_ops.reassemble_patches(
            masks, boxes, torch.zeros(1, dtype=torch.long).cuda(), torch.zeros(1, 4, 4).cuda()
        )
    with pytest.raises(TypeError, match="rois must be on cuda"):
        mmplus_ops.blend_bases(
            torch.zeros(1, 4, 8, 8).cuda(), torch.zeros(1, 5), torch.zeros(1, 4, 7, 7).cuda()
        )
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\)"):
        mmplus_ops.roi_flatten(
            torch.zeros(1, 4, 4).cuda(), torch.zeros(1, 5).cuda(), torch.tensor([3]).cuda(), 3, 1, 8
        )
