"""AdelaiDet's BlendMask under our names."""

import json

import numpy as np
import pytest
import torch
from adelaidet_names import SMALL, SMALL_PANOPTIC, names_of, theirs_of
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

from mmdet_plus.convert import adelaidet_blendmask, adelaidet_unused, is_adelaidet_blendmask
from mmdet_plus.convert.files import convert_file
from mmdet_plus.engine.checkpoint_match import compare_weights
from mmdet_plus.engine.errors import UserError

R50 = dict(blocks=(3, (3, 4, 6, 3)))
KINDS = {
    "instance": R50,
    "panoptic": dict(R50, levels=(2, 3, 4, 5), semantic=True),
    "550": dict(R50, tops=(6,), towers=(("share", 3),), proto_convs=2),
    "rt bn head": dict(R50, tops=(), towers=(("share", 3),), proto_convs=2, norm_levels=3),
    "dcni3": dict(R50, deformable={(s, b) for s in (1, 2, 3) for b in (0, 3)}),
}


def weights_for(pairs):
    """A different tensor for each name, of the number of dimensions that tells what it is."""
    made = {}
    for number, (theirs, ours) in enumerate(pairs):
        leaf, norm = theirs.rsplit(".")[-1], "norm" in theirs or ".gn." in ours or ".bn." in ours
        matrix = leaf == "weight" and not norm and ".norms." not in ours
        made[theirs] = torch.full((1, 1, 1, 1) if matrix else (1,), float(number))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_has_its_place(kind):
    pairs = names_of(**KINDS[kind])
    source = weights_for(pairs)
    assert len(source) == len(pairs) and is_adelaidet_blendmask(source)
    converted = adelaidet_blendmask(source)
    assert adelaidet_unused(source) == []
    assert {name: float(value) for name, value in converted.items()} == {
        ours: float(source[theirs]) for theirs, ours in pairs
    }


R101 = dict(blocks=(3, (3, 4, 23, 3)))
DCNI3 = {(s, b) for s, n in ((1, 4), (2, 23), (3, 3)) for b in range(0, n, 3)}
PANOPTIC = dict(levels=(2, 3, 4, 5), semantic=True)
ZOO = {
    "blendmask_r50-caffe_fpn_1x_coco": R50,
    "blendmask_r101-caffe-dcni3_fpn_5x_coco": dict(R101, deformable=DCNI3),
    "blendmask-550_r50-caffe_fpn_3x_coco": KINDS["550"],
    "blendmask-rt_r50-caffe_fpn_4x_coco": dict(KINDS["rt bn head"], norm_levels=0),
    "blendmask-rt_r50-caffe_fpn_bn-head_4x_coco": KINDS["rt bn head"],
    "blendmask_r50-caffe_fpn_3x_coco-panoptic": KINDS["panoptic"],
    "blendmask_r101-caffe_fpn_3x_coco-panoptic": dict(R101, **PANOPTIC),
    "blendmask_r101-caffe-dcni3_fpn_5x_coco-panoptic": dict(R101, deformable=DCNI3, **PANOPTIC),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_parameter_of_the_zoo_has_a_name_there(name, repo_root):
    cfg = Config.fromfile(repo_root / f"configs/blendmask/{name}.py").model
    init_default_scope("mmdet")
    with torch.device("meta"):
        weights = MODELS.build(cfg).state_dict()
    names = {name for name in weights if not name.endswith("num_batches_tracked")}
    assert names == {ours for _, ours in names_of(**ZOO[name])}


@pytest.mark.parametrize("fixture", ["blendmask_instance", "blendmask_panoptic"])
def test_names_of_the_reference(fixture, repo_root):
    path = repo_root.parent / f"shared/fixtures/{fixture}.npz"
    if not path.is_file():
        pytest.skip("needs ../shared/fixtures beside the repository")
    theirs = {name for name, _ in json.loads(str(np.load(path)["keys"]))}
    kind = fixture.removeprefix("blendmask_")
    ours = {name for name, _ in names_of(**KINDS[kind])}
    assert {name for name in theirs if not name.endswith("num_batches_tracked")} == ours


@pytest.fixture(scope="module")
def build(repo_root):
    def build(seed=0, panoptic=False):
        name = f"blendmask{'-panoptic' if panoptic else ''}_r18_shapes"
        cfg = Config.fromfile(repo_root / f"configs/shapes/{name}.py")
        init_default_scope("mmdet")
        torch.manual_seed(seed)
        return MODELS.build(cfg.model)

    return build


def check_equal(model, source):
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("panoptic", [False, True])
def test_a_file_is_converted(build, panoptic, tmp_path):
    source = build(panoptic=panoptic)
    theirs = theirs_of(source, **(SMALL_PANOPTIC if panoptic else SMALL))
    settings = dict(pixel_mean=torch.zeros(3, 1, 1), pixel_std=torch.ones(3, 1, 1))
    content = dict(model=theirs | settings, optimizer={}, iteration=9)
    torch.save(content, tmp_path / "theirs.pth")
    unused = []
    number = convert_file("blendmask", tmp_path / "theirs.pth", tmp_path / "o.pth", unused.extend)
    assert number == len(theirs) and unused == ["pixel_mean", "pixel_std"]
    model = build(seed=1, panoptic=panoptic)
    load_checkpoint(model, str(tmp_path / "o.pth"), map_location="cpu", strict=True)
    check_equal(model, source)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_loads_as_it_is(build, wrapped, tmp_path):
    source = build()
    theirs = theirs_of(source, **SMALL)
    content = dict(model=theirs, optimizer={}, iteration=9) if wrapped else theirs
    torch.save(content, tmp_path / "theirs.pth")
    model = build(seed=1)
    load_checkpoint(model, str(tmp_path / "theirs.pth"), map_location="cpu", strict=True)
    check_equal(model, source)


def test_what_a_test_says_of_such_a_file(build):
    """As the hook compares them that stops tests of checkpoints which do not fit."""
    model, settings = build(), dict(pixel_mean=torch.zeros(3, 1, 1))
    theirs = theirs_of(model, **SMALL)
    assert compare_weights(model, dict(model=theirs | settings)) == ([], [], [])
    stray = {"basis_module.extra.weight": torch.zeros(1)}
    assert compare_weights(model, dict(model=theirs | stray)) == ([], list(stray), [])
    del theirs["top_layer.bias"]
    missing, unexpected, _ = compare_weights(model, dict(model=theirs))
    assert missing == ["bbox_head.top_layer.bias"] and unexpected == []


def test_arrays_are_taken_and_nothing_is_shared(build):
    theirs = theirs_of(build(), **SMALL)
    arrays = {name: value.numpy() for name, value in theirs.items()}
    converted = adelaidet_blendmask(arrays)
    before = {name: value.clone() for name, value in theirs.items()}
    for value in converted.values():
        value += 1
    assert all(torch.equal(theirs[name], value) for name, value in before.items())


def test_what_is_not_known_is_refused(build, tmp_path):
    theirs = theirs_of(build(), **SMALL)
    with pytest.raises(ValueError, match=r"it lacks top_layer.weight, .*found backbone.bn1"):
        adelaidet_blendmask(build().state_dict())
    with pytest.raises(ValueError, match="none at all"):
        adelaidet_blendmask({})
    dla = {n.replace("bottom_up.stem", "bottom_up.base_layer"): v for n, v in theirs.items()}
    with pytest.raises(ValueError, match=r"it lacks backbone.bottom_up.stem.conv1.weight; found"):
        adelaidet_blendmask(dla)
    fcos = {n: v for n, v in theirs.items() if not n.startswith(("basis_module", "top_layer"))}
    with pytest.raises(ValueError, match=r"top_layer.weight, basis_module.refine.0.0.weight"):
        adelaidet_blendmask(fcos)
    torch.save(dict(model=fcos), tmp_path / "fcos.pth")
    with pytest.raises(UserError, match="fcos.pth: not a BlendMask of AdelaiDet"):
        convert_file("blendmask", tmp_path / "fcos.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_every_name_without_use_is_listed(build):
    theirs = theirs_of(build(), **SMALL)
    strays = {
        name: torch.zeros(1)
        for name in (
            "pixel_mean",
            "pixel_std",
            "backbone.bottom_up.linear.weight",
            "backbone.bottom_up.res6.0.conv1.weight",
            "basis_module.extra",
            "basis_module.tower.2.1.9.weight",
            "proposal_generator.fcos_head.cls_tower.2.weight",
            "proposal_generator.fcos_head.iou_tower.0.weight",
            "mystery",
        )
    }
    assert adelaidet_unused(theirs | strays) == sorted(strays)
    assert set(strays) - set(adelaidet_unused(theirs | strays, settings=False)) == {
        "pixel_mean",
        "pixel_std",
    }
    # Whatever else is missing.
    assert adelaidet_unused(strays) == sorted(strays) and adelaidet_unused({}) == []
    assert adelaidet_unused({"backbone.top_block.p6.bias": torch.zeros(1)}) == []
    assert adelaidet_blendmask(theirs | strays).keys() == adelaidet_blendmask(theirs).keys()


def test_a_pyramid_with_normalisation_is_not_taken_for_one_without(build):
    """The real-time models of a later version have it; their config needs `neck.norm_cfg`."""
    model = build()
    theirs = theirs_of(model, **SMALL)
    norm = {f"backbone.fpn_output4.norm.{leaf}": torch.zeros(1) for leaf in ("weight", "bias")}
    _, unexpected, _ = compare_weights(model, dict(model=theirs | norm))
    assert sorted(unexpected) == ["neck.fpn_convs.1.gn.bias", "neck.fpn_convs.1.gn.weight"]


def test_the_command_lists_them(build, run_tool, tmp_path):
    theirs = theirs_of(build(), **SMALL)
    torch.save(dict(model=theirs | dict(b=torch.zeros(1), a=torch.zeros(1))), tmp_path / "t.pth")
    code, out, _ = run_tool("convert_checkpoint.py", "blendmask", "t.pth", "o.pth")
    assert code == 0 and out == f"o.pth: {len(theirs)} tensors\nnot used: a, b\n"
