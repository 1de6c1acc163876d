"""BlendMask on Shapes through the engine that the tools use, and as a module by itself."""

import copy

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from small_training import losses_logged, run_training, small_options, train_in_two_processes
from tiny_mr_rcnn import TWO_IMAGES, losses_of, make_batch, total, train_a_little

from mmdet_plus import refine  # noqa: F401, it registers the heads that fusers ask
from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine import prepare_test_cfg, test
from mmdet_plus.engine.comparison import read_scalars

INSTANCE = "configs/shapes/blendmask_r18_shapes.py"
PANOPTIC = "configs/shapes/blendmask-panoptic_r18_shapes.py"
SURE = {"model.test_cfg.score_thr": 1e-4}
LOSSES = {"loss_cls", "loss_bbox", "loss_centerness", "loss_mask", "loss_basis_sem"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    make_shapes(root, num_train=8, num_val=2, image_size=(128, 128), progress=False)
    return root


@pytest.fixture(scope="module")
def options(shapes):
    """For the small config of instances, on small pictures for a few iterations."""
    return small_options(shapes) | SURE


@pytest.fixture(scope="module")
def panoptic_options(shapes):
    """For that of things and stuff."""
    return small_options(shapes, panoptic=True) | SURE


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, repo_root, options):
    """Working folder of a training of three iterations."""
    work_dir = tmp_path_factory.mktemp("unbroken")
    run_training(repo_root / INSTANCE, work_dir, options)
    return work_dir


def test_a_resumed_training_has_the_losses_of_an_unbroken_one(
    unbroken, tmp_path, repo_root, options
):
    checkpoint = str(unbroken / "iter_1.pth")
    run_training(repo_root / INSTANCE, tmp_path, options, resume=checkpoint)
    whole, resumed = losses_logged(unbroken), losses_logged(tmp_path)
    assert list(resumed) == [2, 3] and resumed == {step: whole[step] for step in (2, 3)}
    assert set(resumed[3]) >= LOSSES


def test_the_trained_model_is_tested_and_used(unbroken, tmp_path, repo_root, options):
    config, checkpoint = str(repo_root / INSTANCE), str(unbroken / "iter_3.pth")
    metrics = test(
        prepare_test_cfg(config, checkpoint, work_dir=str(tmp_path), cfg_options=dict(options))
    )
    _, validation = read_scalars(unbroken)
    for name in ("coco/bbox_mAP", "coco/segm_mAP"):
        assert metrics[name] == validation[-1][name]
    inferencer = DetInferencer(config, checkpoint, device="cpu", show_progress=False)
    image = np.random.default_rng(0).integers(0, 255, (100, 140, 3), dtype=np.uint8)
    result = inferencer(image, return_datasamples=True)["predictions"][0].pred_instances
    assert result.masks.shape == (len(result), 100, 140)


def test_panoptic(tmp_path, repo_root, panoptic_options):
    given = dict(panoptic_options)
    run_training(repo_root / PANOPTIC, tmp_path, given)
    values = losses_logged(tmp_path)
    assert len(values) == 3 and set(values[1]) >= LOSSES | {"loss_seg"}
    assert np.isfinite([value for entry in values.values() for value in entry.values()]).all()
    config, checkpoint = str(repo_root / PANOPTIC), str(tmp_path / "iter_3.pth")
    metrics = test(
        prepare_test_cfg(config, checkpoint, work_dir=str(tmp_path / "t"), cfg_options=given)
    )
    assert any(name.endswith("/PQ") for name in metrics)
    inferencer = DetInferencer(config, checkpoint, device="cpu", show_progress=False)
    image = np.random.default_rng(0).integers(0, 255, (100, 140, 3), dtype=np.uint8)
    (sample,) = inferencer(image, return_datasamples=True)["predictions"]
    assert sample.pred_panoptic_seg.sem_seg.shape == (1, 100, 140)


def test_mixed_precision(tmp_path, repo_root, options):
    run_training(repo_root / INSTANCE, tmp_path, options, amp=True)
    values = [value for entry in losses_logged(tmp_path).values() for value in entry.values()]
    assert len(losses_logged(tmp_path)) == 3 and np.isfinite(values).all()


def test_two_processes(tmp_path, repo_root, panoptic_options):
    entries = train_in_two_processes(repo_root / PANOPTIC, tmp_path, panoptic_options)
    values = [value for entry in entries.values() for value in entry.values()]
    assert len(entries) == 2 and np.isfinite(values).all()


def test_the_loss_goes_down(build, batch):
    model = build()
    model.init_weights()
    history = train_a_little(model, batch, iterations=10)
    assert history[-1] < 0.4 * history[0]


def test_every_part_learns(build, batch):
    model = build().train()
    found = losses_of(model, batch)
    assert set(found) == LOSSES
    total(found).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("boxes", [[[], []], [[(8, 10, 50, 60)], []]])
def test_images_without_ground_truth(build, boxes):
    model = build().train()
    found = losses_of(model, make_batch(boxes))
    assert all(torch.isfinite(loss) for loss in found.values())
    assert (float(found["loss_mask"].detach()) == 0) == (not boxes[0])
    total(found).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_batch_is_the_mean_of_its_images(build):
    """No image's boxes, masks or attention get mixed up with another's."""
    changes = {"model.mask_head.bases.norm_cfg": dict(type="GN", num_groups=4)}
    changes["model.backbone.norm_eval"] = True
    model = build(changes=changes).train()
    whole = losses_of(model, make_batch([TWO_IMAGES[0]] * 2))
    alone = losses_of(model, make_batch(TWO_IMAGES[:1]))
    both = losses_of(model, make_batch(TWO_IMAGES))
    swapped = make_batch(TWO_IMAGES)
    for part in swapped.values():
        part.reverse()
    other = losses_of(model, swapped)
    for name in LOSSES:
        torch.testing.assert_close(both[name], other[name], rtol=1e-4, atol=1e-5)
        if name != "loss_cls":
            # The pictures of a batch differ in their noise alone.
            torch.testing.assert_close(whole[name], alone[name], rtol=0.1, atol=1e-3)


def predict(model, batch, rescale=True):
    model.eval()
    data = model.data_preprocessor(copy.deepcopy(batch))
    with torch.no_grad():
        return model.predict(data["inputs"], data["data_samples"], rescale=rescale)


def test_prediction_without_detections(build, batch):
    model = build(changes={"model.test_cfg.score_thr": 1.0})
    for sample in predict(model, batch):
        found = sample.pred_instances
        assert found.masks.shape == (0, 96, 96) and found.bboxes.shape == (0, 4)


def test_prediction_on_a_batch_and_one_by_one(build, batch):
    model = build(changes={"model.test_cfg.score_thr": 1e-3})
    together = predict(model, batch)
    for number, sample in enumerate(together):
        alone = {key: value[number : number + 1] for key, value in batch.items()}
        (single,) = predict(model, alone)
        found, expected = sample.pred_instances, single.pred_instances
        assert len(found) == len(expected) > 0
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-5)


def test_saved_and_loaded(build, batch, tmp_path):
    model, other = build(seed=1), build(seed=2)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    other.load_state_dict(torch.load(tmp_path / "m.pth"), strict=True)
    (a, b), (c, d) = predict(model, batch), predict(other, batch)
    assert torch.equal(a.pred_instances.scores, c.pred_instances.scores)
    assert torch.equal(b.pred_instances.masks, d.pred_instances.masks)


def test_classes_are_counted_once(build, panoptic_cfg):
    model = build(cfg=panoptic_cfg, changes={"model.bbox_head.num_classes": 7})
    assert model.bbox_head.conv_cls.out_channels == 7
    assert model.mask_head.bases.conv_sem.out_channels == 8
    assert model.semantic_head.num_things_classes == 7
    # The config a model was built from is not written into.
    assert "num_classes" not in panoptic_cfg.mask_head.bases
    assert "num_things_classes" not in panoptic_cfg.semantic_head
    MODELS.build(copy.deepcopy(panoptic_cfg))


def test_targets_and_loss_of_the_stuff_head(build, panoptic_cfg):
    head = build(cfg=panoptic_cfg).semantic_head
    gt = torch.tensor([[[0, 2, 3], [4, 5, 255]]], dtype=torch.uint8)
    # Three things, two kinds of stuff; beyond them and 255: ignored.
    assert head._set_things_to_void(gt).tolist() == [[[0, 0, 1], [2, 255, 255]]]
    torch.manual_seed(0)
    x = tuple(torch.randn(1, 64, 32 // 2**i, 32 // 2**i) for i in range(5))
    labels = torch.randint(0, 5, (1, 128, 128), dtype=torch.uint8)
    labels[:, :40] = 255
    batch = make_batch([[]], size=128)["data_samples"]
    batch[0].gt_sem_seg = PixelData(sem_seg=labels)
    logits = torch.nn.functional.interpolate(
        head(x)["seg_preds"], scale_factor=4, mode="bilinear", align_corners=False
    )
    target = (labels.long() - 2).clamp(min=0).masked_fill(labels == 255, 255)
    expected = torch.nn.functional.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(head.loss(x, batch)["loss_seg"], 0.5 * expected)


@pytest.mark.parametrize("rescale", [True, False])
def test_the_panoptic_map_follows_the_instances(build, panoptic_cfg, batch, rescale):
    changes = {"model.test_cfg.score_thr": 1e-3, "model.test_cfg.panoptic.score_thr": 0.05}
    changes["model.test_cfg.panoptic.stuff_area_limit"] = 1
    model = build(cfg=panoptic_cfg, changes=changes)
    for sample in batch["data_samples"]:
        sample.set_metainfo(dict(ori_shape=(48, 192), scale_factor=(0.5, 2.0)))
    for sample in predict(model, batch, rescale):
        found, seg = sample.pred_instances, sample.pred_panoptic_seg.sem_seg[0]
        assert seg.shape == found.masks.shape[1:] == ((48, 192) if rescale else (96, 96))
        best = int(found.scores.argmax())
        inside = seg[found.masks[best]]
        assert found.scores[best] >= 0.05 and (inside % 1000 == found.labels[best]).all()
        assert (inside // 1000 > 0).all()
        assert set(seg[seg < 1000].tolist()) <= {3, 4, 5}


def test_another_fuser(build, panoptic_cfg):
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[0, 4:20, 4:20] = True
    found = InstanceData(masks=masks, scores=torch.tensor([0.9]), labels=torch.tensor([1]))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 4, generator=generator).repeat_interleave(8, 1)
    logits = logits.repeat_interleave(8, 2)
    changes = {"model.test_cfg.panoptic.stuff_area_limit": 1}

    def fused(**fuser):
        model = build(cfg=panoptic_cfg, changes=changes | {"model.panoptic_fusion_head": fuser})
        return model.fuse(found, logits).sem_seg

    plain, void = fused(type="HeuristicFusion"), 3 + 2
    assert set(plain.unique().tolist()) == {1 + 1000, 3, 4, void}
    # No region is as sure as that: all stuff is erased, and the instance stays.
    erased = fused(unknown_erasing=dict(threshold=1.0))
    assert torch.equal(erased, plain.where(plain >= 1000, torch.tensor(void)).int())
    with pytest.raises(ValueError, match="needs an occlusion_head of type OcclusionHead, not None"):
        fused(type="OcclusionFusion")


def occlusion_head(kind, classes=3):
    if kind == "SpatialRankingHead":
        return dict(type=kind, num_classes=classes, score_thr=0.05)
    extractor = dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
        out_channels=64,
        featmap_strides=[8, 16, 32],
    )
    return dict(
        type="OcclusionHead",
        num_classes=classes,
        roi_extractor=extractor,
        score_thr=0.05,
        conv_channels=8,
        fc_channels=8,
    )


@pytest.mark.parametrize(
    ("fuser", "head"),
    [
        ("OcclusionFusion", "OcclusionHead"),
        ("SoftOcclusionFusion", "OcclusionHead"),
        ("SpatialRankingFusion", "SpatialRankingHead"),
    ],
)
def test_fusers_with_a_network(build, panoptic_cfg, batch, fuser, head):
    changes = {
        "model.test_cfg.score_thr": 1e-3,
        "model.test_cfg.panoptic.score_thr": 0.05,
        "model.panoptic_fusion_head": dict(type=fuser, unknown_erasing={}),
        "model.occlusion_head": occlusion_head(head),
        "model.occlusion_only": True,
    }
    model = build(cfg=panoptic_cfg, changes=changes)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"occlusion_head"}
    model.train()
    assert not model.backbone.training and model.occlusion_head.training
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    losses = model.loss(data["inputs"], data["data_samples"])
    word = "ranking" if head == "SpatialRankingHead" else "occlusion"
    assert losses.keys() == {f"loss_{word}", f"acc_{word}"}
    losses[f"loss_{word}"].backward()
    for sample in batch["data_samples"]:
        sample.set_metainfo(dict(ori_shape=(48, 192), scale_factor=(0.5, 2.0)))
    seen = {}

    def noting(x, results, scales):
        seen.update(scales=scales, sizes=[found.masks.shape[1:] for found in results])
        return type(model.occlusion_head).predict(model.occlusion_head, x, results, scales)

    model.occlusion_head.predict = noting
    for sample in predict(model, batch, True):
        assert model.panoptic_fusion_head.field in sample.pred_instances
        assert sample.pred_panoptic_seg.sem_seg.shape == (1, 48, 192)
    assert [scale.tolist() for scale in seen["scales"]] == [[0.5, 2.0, 0.5, 2.0]] * 2
    assert seen["sizes"] == [(48, 192)] * 2


def test_an_occlusion_head_needs_something_to_fuse_and_the_same_classes(
    build, model_cfg, panoptic_cfg
):
    with pytest.raises(ValueError, match="give a semantic_head"):
        build(cfg=model_cfg, changes={"model.occlusion_head": occlusion_head("OcclusionHead")})
    head = occlusion_head("OcclusionHead", classes=4)
    with pytest.raises(ValueError, match="num_classes=4, the model 3 classes of things"):
        build(cfg=panoptic_cfg, changes={"model.occlusion_head": head})
