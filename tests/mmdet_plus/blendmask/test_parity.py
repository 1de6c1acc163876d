"""BlendMask on the fixtures' weights gives what AdelaiDet gave.

Where an instance leaves the image its bases are 0, so that 7 % of the fixtures' mask pixels have a
probability of exactly 0.5. Which side of the threshold their interpolation falls is decided by the
last bit of the box. Convolutions are rounded in another way with another number of threads. So
masks are compared in full with the reference's own boxes, and with ours where a pixel is decided;
and in full with ours where this machine rounds as the reference's did.
"""

import importlib.util
import json

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet_plus.blendmask.blender import paste_masks

SIZE = (192, 256)
CONFIGS = {
    "instance": "blendmask_r50-caffe_fpn_1x_coco",
    "panoptic": "blendmask_r50-caffe_fpn_3x_coco-panoptic",
}


@pytest.fixture(scope="module")
def threads():
    """The reference's number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(CONFIGS))
def case(request, repo_root, threads):
    """The fixture, the sample with our prediction, and what was met on the way."""
    folder = repo_root.parent / "shared/fixtures"
    if not folder.is_dir():
        pytest.skip("needs ../shared/fixtures beside the repository")
    spec = importlib.util.spec_from_file_location("weight_rule", folder / "weight_rule.py")
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    path = folder / f"blendmask_{request.param}.npz"
    cfg = Config.fromfile(repo_root / f"configs/blendmask/{CONFIGS[request.param]}.py").model
    cfg.backbone.init_cfg = None
    if "panoptic" in cfg.test_cfg:
        cfg.test_cfg.panoptic.score_thr = 0.2
    init_default_scope("mmdet")
    model = MODELS.build(cfg).eval()
    # As detectron2 saves it; every name has its place.
    model.load_state_dict(dict(model=rule.state_dict(path, adjust=rule.ADJUST)), strict=True)
    with np.load(path) as file:
        reference = {name: file[name] for name in file.files}
    meta = dict(img_shape=SIZE, ori_shape=SIZE, scale_factor=(1.0, 1.0), batch_input_shape=SIZE)
    image = torch.from_numpy(reference["image"]).permute(2, 0, 1)
    with torch.no_grad():
        data = model.data_preprocessor(
            dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)])
        )
        x = model.extract_feat(data["inputs"])
        levels = x[-5:]
        (found,) = model.bbox_head.predict(levels, data["data_samples"])
        probs = model.mask_head(levels, [found])[0].sigmoid()
        seen = dict(x=x, levels=levels, bases=model.mask_head.bases(levels), found=found)
        seen |= dict(probs=probs, size=data["inputs"].shape[2:])
        if model.semantic_head is not None:
            (seen["semantics"],) = model.semantic_head.predict(x, [meta], rescale=True)
        (sample,) = model.predict(data["inputs"], data["data_samples"])
    return reference, sample, seen


def relative(ours, theirs):
    theirs = torch.from_numpy(theirs)
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def final_masks(reference):
    masks = np.unpackbits(reference["final_masks"], axis=-1, count=SIZE[1])
    return torch.from_numpy(masks.astype(bool))


def iou(a, b):
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))


def test_features(case):
    reference, _, seen = case
    assert tuple(seen["size"]) == tuple(reference["padded"])
    assert relative(seen["levels"][0][0, :8], reference["p3_slice"]) < 1e-4
    assert relative(seen["levels"][-1][0], reference["p7"]) < 1e-4
    assert relative(seen["bases"][0], reference["bases"]) < 1e-4


def test_detections(case):
    reference, _, seen = case
    found = seen["found"]
    assert found.labels.tolist() == reference["classes"].tolist() and len(found) == 100
    assert np.abs(found.scores.numpy() - reference["scores"]).max() < 1e-4
    assert np.abs(found.bboxes.numpy() - reference["boxes"]).max() < 1e-2
    # The fixture tests what it should: boxes beyond the image.
    assert (reference["boxes"] < 0).any() and (reference["boxes"][:, 3] > SIZE[0]).any()
    assert relative(found.attention.flatten(1), reference["attns"]) < 1e-4


def test_mask_probabilities(case):
    reference, _, seen = case
    assert np.abs(seen["probs"].numpy() - reference["mask_probs"]).max() < 1e-3


def test_final_boxes(case):
    reference, sample, _ = case
    instances = sample.pred_instances
    assert instances.labels.tolist() == reference["final_classes"].tolist()
    assert np.abs(instances.scores.numpy() - reference["final_scores"]).max() < 1e-4
    assert np.abs(instances.bboxes.numpy() - reference["final_boxes"]).max() < 1e-2


def test_masks_of_the_reference_s_own_boxes_and_probabilities(case):
    reference, _, _ = case
    boxes, probs = (torch.from_numpy(reference[k]) for k in ("final_boxes", "mask_probs"))
    assert torch.equal(paste_masks(probs, boxes, *SIZE, 0.5), final_masks(reference))


def test_final_masks_where_they_are_decided(case):
    reference, sample, seen = case
    ours, theirs = sample.pred_instances.masks, final_masks(reference)
    boxes = sample.pred_instances.bboxes
    low = paste_masks(seen["probs"], boxes, *SIZE, 0.5 - 1e-4)
    high = paste_masks(seen["probs"], boxes, *SIZE, 0.5 + 1e-4)
    decided = low == high
    assert decided.float().mean() > 0.97
    assert iou(ours & decided, theirs & decided).min() >= 0.999


def rounded_as_the_reference(reference, seen):
    """In all that boxes and masks are made of: P3 can be the same by itself."""
    features = {
        "p3_slice": seen["levels"][0][0, :8],
        "p7": seen["levels"][-1][0],
        "bases": seen["bases"][0],
    }
    if any(relative(ours, reference[name]) > 0 for name, ours in features.items()):
        pytest.skip("this machine rounds in another way than the reference's did")


def test_final_masks(case):
    reference, sample, seen = case
    rounded_as_the_reference(reference, seen)
    assert iou(sample.pred_instances.masks, final_masks(reference)).min() >= 0.999


def test_semantic_logits(case):
    reference, _, seen = case
    if "semantics" not in seen:
        pytest.skip("not of the instance model")
    logits = seen["semantics"]
    reduced = torch.from_numpy(reference["sem_logits_stride8"])
    assert (logits[:, ::8, ::8] - reduced).abs().max() < 1e-3
    same = logits.argmax(0).numpy() == reference["sem_argmax"]
    assert same.mean() > 0.9999


def test_panoptic_map(case):
    """At 0.999 where this machine rounds as the reference's did, else without its masks' edges."""
    reference, sample, seen = case
    if "semantics" not in seen:
        pytest.skip("not of the instance model")
    segments = json.loads(str(reference["panoptic_info"]))
    wanted = np.full(SIZE, 133)
    for segment in segments:
        label, number = segment["category_id"], segment["id"]
        code = label + 1000 * number if segment["isthing"] else 79 + label
        wanted[reference["panoptic_seg"] == number] = code
    ours = sample.pred_panoptic_seg.sem_seg
    assert ours.shape == (1, *SIZE) and ours.dtype is torch.int32
    # The undecided pixels are half a per cent of this map.
    assert (ours[0].numpy() == wanted).mean() >= 0.99
    assert set(ours.unique().tolist()) == set(np.unique(wanted).tolist())
    rounded_as_the_reference(reference, seen)
    assert (ours[0].numpy() == wanted).mean() >= 0.999
