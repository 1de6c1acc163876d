"""The ops as operators of torch: opcheck, torch.compile, torch.export, the meta device."""

import pytest
import torch
from op_cases import needs_compiled_ops, odd_rois, random_masks, random_rois
from torch import nn

import mmplus_ops
from mmplus_ops._registration import takes_operator

OPS = torch.ops.mmplus


NAMES = [
    "blend_bases",
    "blend_bases_backward",
    "connected_components",
    "crop_patches",
    "extract_boundary_patches",
    "mask_intersections",
    "pair_areas",
    "reassemble_patches",
    "roi_flatten",
    "roi_flatten_backward",
    "shape_aware_roi_align",
    "shape_aware_roi_align_backward",
]


def floats(*shape, grad=False):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))
    return value.requires_grad_(grad)


def rois_of(k):
    return random_rois(k, 2, 32.0, torch.Generator().manual_seed(k), torch.float32)


def masks_of(n=3, rows=20, cols=70):
    return random_masks(n, rows, cols, torch.Generator().manual_seed(n))


def align_samples(grad):
    for k, dtype in ((5, torch.float32), (0, torch.float32), (5, torch.bfloat16)):
        feature = floats(2, 3, 9, 10).to(dtype).requires_grad_(grad)
        prob = torch.rand(k, 4, 5).to(dtype).requires_grad_(grad)
        yield feature, rois_of(k), prob, 3, 4, 0.25, 0, True
    feature = floats(2, 3, 9, 10).contiguous(memory_format=torch.channels_last)
    yield feature.requires_grad_(grad), rois_of(5), torch.rand(5, 4, 5), 3, 4, 0.25, 2, False


def blend_samples(grad):
    for k in (5, 0):
        bases = floats(2, 4, 8, 9, grad=grad)
        yield (
            bases,
            rois_of(k),
            floats(k or 1, 4, 5, 5)[:k].detach().requires_grad_(grad),
            6,
            0.25,
            1,
        )
    bases = floats(2, 4, 8, 9).contiguous(memory_format=torch.channels_last).requires_grad_(grad)
    yield bases, rois_of(5), floats(5, 4, 5, 5).transpose(2, 3).requires_grad_(grad), 6, 0.25, 0


def flatten_samples(grad):
    labels = torch.tensor([0, 2, 1, 0, 2])
    for maximum in (True, False):
        masks = torch.rand(5, 6, 6).requires_grad_(grad)
        yield masks, rois_of(5), labels, 3, 2, 8, 9, 0.25, maximum
        yield (
            masks.detach().transpose(1, 2).requires_grad_(grad),
            rois_of(5),
            labels,
            3,
            2,
            8,
            9,
            0.25,
            maximum,
        )
    yield torch.rand(0, 6, 6).requires_grad_(grad), rois_of(0), labels[:0], 3, 2, 8, 9, 0.25, True


def patch_samples():
    masks = masks_of()
    boxes, index = mmplus_ops.extract_boundary_patches(masks, 8)
    return masks, boxes, index


def samples_of(name):
    """Arguments of an operator, by its name."""
    masks, boxes, index = patch_samples()
    image = torch.randint(0, 256, (20, 70, 3), dtype=torch.uint8)
    return {
        "shape_aware_roi_align": list(align_samples(True)) + list(align_samples(False)),
        "shape_aware_roi_align_backward": [
            (floats(5, 3, 3, 4), floats(2, 3, 9, 10), rois_of(5), torch.rand(5, 4, 5),
             [2, 3, 9, 10], 0.25, 0, True, want_input, want_prob)
            for want_input, want_prob in ((True, True), (True, False), (False, True))
        ],
        "blend_bases": list(blend_samples(True)) + list(blend_samples(False)),
        "blend_bases_backward": [
            (floats(len(rois), 6, 6), bases, rois, attention, scale, ratio)
            for bases, rois, attention, _, scale, ratio in blend_samples(False)
            if len(rois)
        ]
        + [
            (torch.zeros(0, 6, 6), floats(2, 4, 8, 9).contiguous(memory_format=torch.channels_last),
             rois_of(0), torch.zeros(0, 4, 5, 5), 0.25, 1)
        ],
        "roi_flatten": list(flatten_samples(True)) + list(flatten_samples(False)),
        "roi_flatten_backward": [
            (floats(2, 3, 8, 9), masks_, rois, labels, scale, maximum)
            for masks_, rois, labels, *_, scale, maximum in flatten_samples(False)
        ],
        "extract_boundary_patches": [
            (masks, 8, 0.25, scheme, budget, doubt)
            for scheme in ("dense", "grid", "instance")
            for budget, doubt in ((None, None), (4, None), (4, torch.rand(masks.shape)))
        ],
        "crop_patches": [
            (image, masks, boxes, index, 10, padding) for padding in (0, 3)
        ] + [(image.permute(1, 0, 2).contiguous().permute(1, 0, 2), masks, boxes, index, 10, 1)],
        "reassemble_patches": [
            (value, boxes, index, torch.rand(len(boxes), 8, 8), 0.5, 0)
            for value in (masks, masks.byte(), masks.transpose(1, 2).contiguous().transpose(1, 2))
        ],
        "mask_intersections": [(masks,), (masks[:0],)],
        "connected_components": [(masks[0].long(), []), (masks[0].byte(), [0])],
        "pair_areas": [
            (masks[0].int(), masks[1].int()),
            (masks[0, :0].int(), masks[1, :0].int()),
            (torch.randint(0, 5, (4, 22), dtype=torch.uint8) // 4, torch.ones(4, 7).int()),
        ],
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    """Schema, fake kernel, autograd and AOT dispatch, with static and dynamic shapes."""
    samples = samples_of(name)
    assert samples
    for arguments in samples:
        torch.library.opcheck(getattr(OPS, name).default, arguments)


def test_every_operator_is_checked():
    registered = {
        schema.name.removeprefix("mmplus::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("mmplus::")
    }
    assert registered - {"_build_info"} == set(NAMES)


# ---- modules ----


class Align(nn.Module):
    def forward(self, feature, rois, prob):
        return mmplus_ops.shape_aware_roi_align(feature * 2, rois, prob.sigmoid(), 3, 0.25).relu()


class Blend(nn.Module):
    def forward(self, bases, rois, attention):
        return mmplus_ops.blend_bases(bases * 2, rois, attention, 6).sigmoid()


class Flatten(nn.Module):
    """The canvas is as large as a feature map, as in REFINE."""

    def forward(self, masks, rois, labels, feature):
        canvas = mmplus_ops.roi_flatten(
            masks.sigmoid(), rois, labels, 3, feature.shape[0], feature.shape[2:]
        )
        return canvas * feature.mean(1, keepdim=True)


def inputs_of(module, k=5, size=8):
    """Tensors with and without gradient, and which sizes are dynamic: (tensors, {place: axes})."""
    feature, rois = floats(2, 4, size, size + 1, grad=True), rois_of(k)
    if isinstance(module, Align):
        return (feature, rois, floats(k, 4, 4, grad=True)), ({2: "h", 3: "w"}, {0: "k"}, {0: "k"})
    if isinstance(module, Blend):
        attention = floats(k, 4, 5, 5, grad=True)
        return (feature, rois, attention), ({2: "h", 3: "w"}, {0: "k"}, {0: "k"})
    labels = torch.arange(k) % 3
    dynamic = ({0: "k"}, {0: "k"}, {0: "k"}, {2: "h", 3: "w"})
    return (floats(k, 6, 6, grad=True), rois, labels, feature), dynamic


def run(module, tensors):
    out = module(*tensors)
    leaves = [value for value in tensors if value.requires_grad]
    upstream = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return out, *torch.autograd.grad(out, leaves, upstream)


def assert_same(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [Align(), Blend(), Flatten()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_a_graph_break(module, backend):
    torch._dynamo.reset()
    tensors, _ = inputs_of(module)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    assert_same(run(compiled, tensors), run(module, tensors))


@pytest.mark.parametrize("module", [Align(), Blend(), Flatten()], ids=lambda m: type(m).__name__)
def test_compile_once_for_all_shapes(module):
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(module, fullgraph=True, backend=count, dynamic=True)
    # No two sizes that differ later are equal at first: they would count as one.
    for k, size in ((20, 8), (31, 13), (17, 10)):
        tensors, _ = inputs_of(module, k, size)
        assert_same(run(compiled, tensors), run(module, tensors))
    assert len(graphs) == 1
    assert any("mmplus" in str(node.target) for node in graphs[0].graph.nodes)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("module", [Align(), Blend(), Flatten()], ids=lambda m: type(m).__name__)
def test_export_with_dynamic_shapes(module, strict):
    torch._dynamo.reset()
    tensors, dynamic = inputs_of(module)
    names = {name: torch.export.Dim(name, min=2, max=99) for name in ("h", "w", "k")}
    shapes = tuple({axis: names[name] for axis, name in axes.items()} for axes in dynamic)
    program = torch.export.export(module, tensors, dynamic_shapes=shapes, strict=strict)
    nodes = [str(node.target) for node in program.graph.nodes]
    assert sum("mmplus" in node for node in nodes) == 1
    for k, size in ((5, 8), (9, 13)):
        other, _ = inputs_of(module, k, size)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(*other), module(*other))


def test_compile_of_the_whole_number_ops():
    """From masks to refined masks: the number of patches is not known before."""
    torch._dynamo.reset()

    def refine(image, masks):
        boxes, index = mmplus_ops.extract_boundary_patches(masks, 8)
        images, crops = mmplus_ops.crop_patches(image, masks, boxes, index, 8)
        patches = (crops[:, 0] + images.mean(1) / 255) / 2
        refined = mmplus_ops.reassemble_patches(masks, boxes, index, patches)
        regions = mmplus_ops.connected_components(refined[0].long(), (0,))
        return boxes, refined, mmplus_ops.mask_intersections(refined), regions

    masks = masks_of()
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (20, 70, 3), generator=generator, dtype=torch.uint8)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(refine, fullgraph=True, backend="aot_eager")
        ours = compiled(image, masks)
    for a, b in zip(ours, refine(image, masks), strict=True):
        assert torch.equal(a, b)


# ---- devices and switches ----


def test_the_meta_device_has_shapes():
    def meta(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    rois, masks = meta(7, 5), meta(3, 20, 30, dtype=torch.bool)
    places = meta(9, 4, dtype=torch.int64), meta(9, dtype=torch.int64)
    image = meta(20, 30, 3, dtype=torch.uint8)
    shapes = {
        (7, 8, 5, 5): mmplus_ops.shape_aware_roi_align(meta(2, 8, 9, 9), rois, meta(7, 4, 4), 5),
        (7, 56, 56): mmplus_ops.blend_bases(meta(2, 4, 9, 9), rois, meta(7, 4, 14, 14)),
        (2, 3, 6, 5): mmplus_ops.roi_flatten(
            meta(7, 4, 4), rois, meta(7, dtype=torch.int64), 3, 2, (6, 5)
        ),
        (9, 3, 16, 16): mmplus_ops.crop_patches(image, masks, *places, 16)[0],
        (3, 20, 30): mmplus_ops.reassemble_patches(masks, *places, meta(9, 8, 8)),
        (3, 3): mmplus_ops.mask_intersections(masks),
        (20, 30): mmplus_ops.connected_components(masks[0]),
    }
    for shape, value in shapes.items():
        assert value.shape == shape and value.is_meta


def test_the_switch_is_read_at_every_call(monkeypatch):
    value = torch.zeros(1)
    monkeypatch.setenv("MMPLUS_WITH_OPS", "0")
    assert not takes_operator(value) and takes_operator(value.to("meta"))
    monkeypatch.delenv("MMPLUS_WITH_OPS")
    assert takes_operator(value) == mmplus_ops.has_compiled_ops()


@needs_compiled_ops
def test_an_operator_that_is_called_by_itself_checks_the_images():
    """As in a compiled graph, where nothing is looked at before."""
    rois = odd_rois(torch.float32)
    rois[3, 0] = 2
    attention = torch.zeros(len(rois), 4, 5, 5)
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\), got 2 in row 3"):
        OPS.blend_bases(floats(2, 4, 8, 8), rois, attention, 6, 0.25, 1)
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\), got 2 in row 3"):
        OPS.shape_aware_roi_align(
            floats(2, 4, 8, 8), rois, torch.ones(len(rois), 2, 2), 6, 6, 0.25, 1, True
        )
    labels = torch.zeros(len(rois), dtype=torch.long)
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\), got 2 in row 3"):
        OPS.roi_flatten(torch.ones(len(rois), 4, 4), rois, labels, 1, 2, 6, 6, 0.25, True)
