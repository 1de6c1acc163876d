import copy
import shutil

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope, init_default_scope
from mmseg.registry import MODELS

from mmplus_ops import crop_patches, extract_boundary_patches, reassemble_patches
from mmseg_plus.bpr import BoundaryRefiner
from mmseg_plus.bpr import refiner as refiner_module
from mmseg_plus.common.config import read_config
from mmseg_plus.common.errors import UserError

CONFIG = "bpr_hrnetv2-w16t_shapes"


@pytest.fixture(params=[None, "mmdet"])
def scope(request):
    """A program's own scope, or none at all."""
    before = DefaultScope._instance_dict.copy()
    DefaultScope._instance_dict.clear()
    if request.param:
        init_default_scope(request.param)
    yield
    current = DefaultScope.get_current_instance()
    assert (current.scope_name if current else None) == request.param
    DefaultScope._instance_dict.update(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Weights that make of a mask something else, in a file."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(refiner_module._plain(read_config(CONFIG).model))
    # Random features are no match for it.
    model.decode_head.coarse_weight.data.zero_()
    path = tmp_path_factory.mktemp("weights") / "refiner.pth"
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


def make(checkpoint, **kwargs):
    cfg = read_config(CONFIG)
    cfg.model.data_preprocessor.input_size = 32
    return BoundaryRefiner(cfg, checkpoint, **kwargs)


def scene(height=150, width=200, count=4, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, height - 20), rng.integers(0, width - 20)
        mask[y : y + rng.integers(10, 80), x : x + rng.integers(10, 80)] = True
    return image, masks


def by_hand(refiner, image, masks, **extraction):
    """All patches of all masks in one go."""
    coarse, picture = torch.from_numpy(masks), torch.from_numpy(image)
    boxes, index = extract_boundary_patches(coarse, **extraction)
    with torch.no_grad():
        images, crops = crop_patches(picture, coarse, boxes, index, 32)
        size = (int(boxes[0, 3] - boxes[0, 1]), int(boxes[0, 2] - boxes[0, 0]))
        probabilities = refiner.model.refine_patches(images, crops, size)
    return reassemble_patches(coarse, boxes, index, probabilities).numpy(), len(boxes)


@pytest.mark.parametrize("batch_size", [1, 5, 256])
def test_refine_is_extraction_network_reassembly(checkpoint, batch_size):
    refiner = make(checkpoint, batch_size=batch_size)
    image, masks = scene()
    refined = refiner.refine(image, masks)
    expected, count = by_hand(refiner, image, masks)
    assert refined.dtype == bool and refined.shape == masks.shape
    # Convolutions of other batch sizes may round otherwise, which turns a pixel near one half.
    assert (refined != expected).mean() < 1e-3
    assert (refined != masks).any()
    assert refiner.num_patches == count > 5


def test_scopes_of_the_program_stay(checkpoint, scope):
    image, masks = scene()
    assert make(checkpoint).refine(image, masks).shape == masks.shape


def test_same_call_same_answer_and_arguments_untouched(checkpoint):
    refiner = make(checkpoint)
    image, masks = scene()
    before = image.copy(), masks.copy()
    first, second = refiner.refine(image, masks), refiner.refine(image, masks)
    assert np.array_equal(first, second)
    assert np.array_equal(image, before[0]) and np.array_equal(masks, before[1])


def test_pixels_far_from_boundaries_keep_the_coarse_mask(checkpoint):
    refiner = make(checkpoint, patch_size=16)
    image, masks = scene(count=1)
    masks[:] = False
    masks[0, 20:120, 20:160] = True
    refined = refiner.refine(image, masks)
    assert refined[0, 50:90, 50:130].all()
    assert not refined[0, :, 190:].any()


@pytest.mark.parametrize(
    ("height", "width", "count"), [(40, 200, 2), (30, 30, 1), (150, 200, 0), (64, 64, 3)]
)
def test_small_images_and_no_instances(checkpoint, height, width, count):
    refiner = make(checkpoint)
    image, masks = scene(height, width, count)
    assert refiner.refine(image, masks).shape == (count, height, width)


def test_empty_full_and_touching_masks(checkpoint):
    refiner = make(checkpoint)
    image, masks = scene(count=4)
    masks[0] = False
    masks[1] = True
    masks[2] = False
    masks[2, :5, :7] = True
    refined = refiner.refine(image, masks)
    assert not refined[0].any()
    assert refined.shape == masks.shape
    alone = refiner.refine(image, masks[3:])
    assert (refined[3] != alone[0]).mean() < 1e-3


def test_many_instances_in_small_batches(checkpoint):
    refiner = make(checkpoint, batch_size=64, patch_size=32)
    image, masks = scene(120, 160, 500, seed=1)
    refined = refiner.refine(image, masks)
    assert refined.shape == masks.shape
    picked = refiner.refine(image, masks[[7, 311]])
    assert (picked != refined[[7, 311]]).mean() < 1e-3


@pytest.mark.parametrize("scheme", ["dense", "grid", "instance"])
@pytest.mark.parametrize("padding", [0, 5])
def test_schemes_and_padding(checkpoint, scheme, padding):
    refiner = make(checkpoint, scheme=scheme, padding=padding)
    image, masks = scene()
    refined = refiner.refine(image, masks)
    assert (refined != masks).any() and refined.shape == masks.shape


def test_budget_takes_the_least_certain_patches(checkpoint):
    image, masks = scene(count=2)
    masks[:] = False
    masks[0, 10:60, 10:60] = True
    masks[1, 80:140, 100:180] = True
    refiner = make(checkpoint, max_patches=2)
    probs = np.where(masks, 0.99, 0.01).astype(np.float32)
    probs[1] = np.where(masks[1], 0.6, 0.4)
    refined = refiner.refine(image, masks, probs)
    assert refiner.num_patches == 2
    assert np.array_equal(refined[0], masks[0])
    assert not np.array_equal(refined[1], masks[1])
    assert np.array_equal(make(checkpoint, max_patches=0).refine(image, masks), masks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, m: (i.astype(np.float32), m, None), "uint8"),
        (lambda i, m: (i[..., 0], m, None), "grey"),
        (lambda i, m: (i, m.astype(np.uint8), None), "bool"),
        (lambda i, m: (i, m[0], None), "N, H, W"),
        (lambda i, m: (i, m[:, :-1], None), "149 pixels, the image is 200 x 150"),
        (lambda i, m: (i, m, m), "probs"),
        (lambda i, m: (i, m, m[:1].astype(float)), "probs"),
    ],
)
def test_wrong_arguments(checkpoint, change, message):
    refiner = make(checkpoint)
    with pytest.raises(ValueError, match=message):
        refiner.refine(*change(*scene()))


def test_views_of_arrays_are_taken(checkpoint):
    refiner = make(checkpoint)
    image, masks = scene()
    flipped = refiner.refine(image[:, ::-1], masks[:, :, ::-1])
    again = refiner.refine(image[:, ::-1].copy(), masks[:, :, ::-1].copy())
    assert np.array_equal(flipped, again)


def test_wrong_batch_size(checkpoint):
    with pytest.raises(ValueError, match="batch_size"):
        make(checkpoint, batch_size=0)


def test_missing_and_foreign_weights(checkpoint, tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        make(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="not a checkpoint"):
        make(tmp_path / "text.pth")
    with pytest.raises(UserError, match=r"not of .*w48.*conv"):
        BoundaryRefiner("bpr_hrnetv2-w48_160k_cityscapes-256x256", checkpoint)
    with pytest.raises(UserError, match="no weights lie beside"):
        BoundaryRefiner("bpr_hrnetv2-w48_160k_cityscapes-256x256")
    with pytest.raises(UserError, match="no BoundaryPatchRefiner"):
        BoundaryRefiner("mask-rcnn_r18_shapes", checkpoint)


def test_weights_of_a_distributed_training_and_beside_the_config(checkpoint, tmp_path):
    weights = torch.load(checkpoint)["state_dict"]
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "c.pth")
    (tmp_path / "c.py").write_text(read_config(CONFIG).pretty_text)
    image, masks = scene()
    beside = BoundaryRefiner(tmp_path / "c.py").refine(image, masks)
    shutil.copy(checkpoint, tmp_path / "c.pth")
    assert np.array_equal(beside, BoundaryRefiner(tmp_path / "c.py").refine(image, masks))


def test_plain_operators_give_the_same(checkpoint, plain_ops):
    image, masks = scene(80, 90, 2)
    refiner = make(checkpoint)
    plain = refiner.refine(image, masks)
    assert plain.shape == masks.shape and (plain != masks).any()


def test_half_precision_is_nearly_the_same(checkpoint, monkeypatch):
    refiner = make(checkpoint)
    half = refiner.with_options(amp=True)
    assert not refiner.amp and half.amp
    types = []
    refiner.model.backbone.register_forward_hook(lambda *args: types.append(args[-1][0].dtype))
    image, masks = scene()
    refined, other = refiner.refine(image, masks), half.refine(image, masks)
    assert set(types[: len(types) // 2]) == {torch.float32}
    assert set(types[len(types) // 2 :]) == {torch.bfloat16}
    assert (refined != other).mean() < 0.02


def test_groups_never_split_a_mask_and_lose_none():
    index = torch.tensor([0, 0, 0, 2, 3, 3, 5])
    groups = list(refiner_module._groups(index, 7, 2))
    covered = []
    for first, last, patches in groups:
        owners = index[patches].tolist()
        assert all(first <= owner < last for owner in owners)
        covered += owners
    assert covered == index.tolist()
    assert list(refiner_module._groups(index[:0], 3, 2)) == []
    assert copy.deepcopy(groups)[0] == (0, 1, slice(0, 3))


def test_caution_is_the_config_s_unless_given(checkpoint):
    cfg = read_config(CONFIG)
    # Twice the patch, so that the mask comes through the resizing as it is.
    cfg.model.data_preprocessor.input_size = 128
    cfg.model.test_cfg.caution = 100.0
    image, masks = scene(height=80, width=100, count=2)
    careful = BoundaryRefiner(cfg, checkpoint)
    assert np.array_equal(careful.refine(image, masks), masks)
    assert careful.with_options(caution=None).caution == 100 == careful.with_options().caution
    bold = careful.with_options(caution=0.0)
    assert (bold.refine(image, masks) != masks).any()
    assert make(checkpoint).caution == 0
    with pytest.raises(ValueError, match="caution"):
        make(checkpoint, caution=-1.0)
