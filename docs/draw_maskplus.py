"""Draw the data flow of MaskPlus from the code as it is: docs/_static/maskplus.svg.

    python docs/draw_maskplus.py

The mask branch of configs/maskplus/maskplus_r50_fpn_360k_coco.py is run once, and every box tells
the channels and the size that its module gave. A test draws it anew and compares.
"""

from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/maskplus/maskplus_r50_fpn_360k_coco.py"
TARGET = ROOT / "docs/_static/maskplus.svg"
PLAIN, FUSION, PYRAMID, REFINEMENT, QUASI = "#e8eef7", "#ffdcdc", "#dcf2dc", "#dce6ff", "#fff3cc"
WIDTH, HEIGHT = 1010, 500
# Module, its name in the figure, left edge, middle, colour. Their order is that of the arrows.
BOXES = {
    "": ("RoI features", 20, 90, PLAIN),
    "fusion": ("+ context", 150, 90, FUSION),
    "convs": ("4 convolutions", 280, 90, PLAIN),
    "pyramid": ("sum", 410, 90, PYRAMID),
    "upsample": ("deconvolution", 540, 90, PLAIN),
    "conv_logits": ("logits", 670, 90, PLAIN),
    "refinement": ("+ residual", 800, 90, REFINEMENT),
    "image": ("full-image RoI", 20, 210, FUSION),
    "fusion.convs": ("{filters}", 150, 210, FUSION),
    "pyramid.up.0": ("deconvolution", 410, 210, PYRAMID),
    "pyramid.up.1": ("deconvolution", 410, 290, PYRAMID),
    "pyramid.down.0": ("convolution", 540, 290, PYRAMID),
    "pyramid.down.1": ("convolution", 540, 210, PYRAMID),
    "dense": ("{dense} dense modules", 730, 210, REFINEMENT),
    "residual": ("1 x 1", 870, 210, REFINEMENT),
    "quasi.convs": ("4 convolutions", 390, 400, QUASI),
    "quasi": ("logits", 560, 400, QUASI),
}
ARROWS = (
    ("", "fusion"),
    ("fusion", "convs"),
    ("convs", "pyramid"),
    ("pyramid", "upsample"),
    ("upsample", "conv_logits"),
    ("conv_logits", "refinement"),
    ("image", "fusion.convs"),
    ("fusion.convs", "fusion"),
    ("convs", "pyramid.up.0"),
    ("pyramid.up.0", "pyramid.up.1"),
    ("pyramid.up.1", "pyramid.down.0"),
    ("pyramid.down.0", "pyramid.down.1"),
    ("pyramid.up.0", "pyramid.down.1"),
    ("pyramid.down.1", "pyramid"),
    ("conv_logits", "dense"),
    ("dense", "residual"),
    ("residual", "refinement"),
    ("fusion", "quasi.convs"),
    ("quasi.convs", "quasi"),
)
BOX_WIDTH, BOX_HEIGHT = 112, 46


def shapes() -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Run the mask branch in training; what each module gave, and the numbers in the names."""
    cfg = Config.fromfile(CONFIG)
    import_modules_from_strings(**cfg.custom_imports)
    with DefaultScope.overwrite_default_scope("mmdet"):
        rcnn = cfg.model.train_cfg.rcnn
        head = MODELS.build(dict(cfg.model.roi_head, train_cfg=rcnn, test_cfg=None))
    extractor, mask_head = head.mask_roi_extractor, head.mask_head
    modules = {
        "fusion.convs": extractor.fusion.convs,
        "fusion": extractor.fusion,
        "convs": mask_head.convs[-1],
        "pyramid": mask_head.deconv_pyramid,
        "pyramid.up.0": mask_head.deconv_pyramid.up[0],
        "pyramid.up.1": mask_head.deconv_pyramid.up[1],
        "pyramid.down.0": mask_head.deconv_pyramid.down[0],
        "pyramid.down.1": mask_head.deconv_pyramid.down[1],
        "upsample": mask_head.upsample,
        "conv_logits": mask_head.conv_logits,
        "dense": mask_head.boundary_refinement.dense_modules[-1],
        "residual": mask_head.boundary_refinement.residual,
        "refinement": mask_head.boundary_refinement,
        "quasi.convs": mask_head.quasi_branch.convs[-1],
        "quasi": mask_head.quasi_branch,
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.update({name: tuple(output.shape)})
        )
    extractor.fusion.register_forward_hook(
        lambda _module, inputs, _output: found.update(
            {"": tuple(inputs[0].shape), "image": tuple(inputs[1].shape)}
        )
    )
    levels = tuple(torch.zeros(1, 256, 256 // s, 256 // s) for s in (4, 8, 16, 32))
    with torch.no_grad():
        head._mask_forward(head.with_image_features(levels), torch.tensor([[0.0, 8, 8, 104, 104]]))
    numbers = {
        "filters": "-".join(str(conv.out_channels) for conv in extractor.fusion.convs),
        "dense": len(mask_head.boundary_refinement.dense_modules),
    }
    return found, numbers


def draw() -> str:
    """The figure as SVG."""
    found, numbers = shapes()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" role="img" aria-label="Data flow of MaskPlus">',
        "<title>Data flow of MaskPlus</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="#333"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for name, (label, x, y, colour) in BOXES.items():
        _, channels, rows, cols = found[name]
        top = y - BOX_HEIGHT / 2
        middle = x + BOX_WIDTH / 2
        parts += [
            f'<rect x="{x}" y="{top:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
            f'fill="{colour}" stroke="#333"/>',
            _text(middle, y - 4, label.format(**numbers)),
            _text(middle, y + 14, f"{channels}: {rows} x {cols}", "#555"),
        ]
    parts += [_arrow(*arrow) for arrow in ARROWS]
    captions = (
        (20, 40, "mask branch of Mask R-CNN", PLAIN),
        (20, 262, "contextual fusion", FUSION),
        (445, 342, "deconvolutional pyramid", PYRAMID),
        (730, 262, "improved boundary refinement", REFINEMENT),
        (390, 452, "quasi-multitask learning, in training only", QUASI),
    )
    for x, y, text, colour in captions:
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{y}" fill="#333">{text}</text>')
    target = f"masks of {found['quasi'][2]} x {found['quasi'][3]}, loss_mask_quasi"
    parts.append(_text(BOXES["quasi"][1] + BOX_WIDTH / 2, 474, target))
    final = f"masks of {found['refinement'][2]} x {found['refinement'][3]}, loss_mask"
    parts.append(_text(BOXES["refinement"][1] + BOX_WIDTH / 2, 54, final))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, colour: str = "#111") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" fill="{colour}">{text}</text>'


def _arrow(start: str, end: str) -> str:
    (_, x1, y1, _), (_, x2, y2, _) = BOXES[start], BOXES[end]
    if y1 == y2:
        points = (x1 + BOX_WIDTH, y1, x2, y2) if x1 < x2 else (x1, y1, x2 + BOX_WIDTH, y2)
    else:
        half = BOX_HEIGHT / 2 if y1 < y2 else -BOX_HEIGHT / 2
        points = (x1 + BOX_WIDTH / 2, y1 + half, x2 + BOX_WIDTH / 2, y2 - half)
    a, b, c, d = points
    return (
        f'<line x1="{a:g}" y1="{b:g}" x2="{c:g}" y2="{d:g}" stroke="#333" marker-end="url(#tip)"/>'
    )


if __name__ == "__main__":
    TARGET.write_text(draw())
    print(TARGET)
