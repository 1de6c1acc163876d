"""Draw the data flow of MaskPlus from the code as it is: docs/_static/maskplus.svg.

    python docs/draw_maskplus.py

The mask branch of configs/maskplus/maskplus_r50_fpn_360k_coco.py is run once, and every box tells
the channels and the size that its module gave. A test draws it anew, compares, and finds the arrows
in the graph of the gradient.
"""

from pathlib import Path
from typing import Any

import torch
from drawing import BOX_WIDTH, PLAIN, Notes, arrow, box, figure, key, size, text
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/maskplus/maskplus_r50_fpn_360k_coco.py"
TARGET = ROOT / "docs/_static/maskplus.svg"
FUSION, PYRAMID, REFINEMENT, QUASI = "#ffdcdc", "#dcf2dc", "#dce6ff", "#fff3cc"
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


def run() -> tuple[Notes, dict[str, Any]]:
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
        "residual": mask_head.boundary_refinement.residual,
        "refinement": mask_head.boundary_refinement,
        "quasi.convs": mask_head.quasi_branch.convs[-1],
        "quasi": mask_head.quasi_branch,
    }
    notes = Notes()
    for name, module in modules.items():
        notes.watch(module, outputs=[name])
    notes.watch(extractor.fusion, {0: "", 1: "image"})
    # The logits beside the outputs of all dense modules.
    notes.watch(mask_head.boundary_refinement.residual, {0: "dense"})
    levels = tuple(
        torch.zeros(1, 256, 256 // s, 256 // s, requires_grad=True) for s in (4, 8, 16, 32)
    )
    head._mask_forward(head.with_image_features(levels), torch.tensor([[0.0, 8, 8, 104, 104]]))
    numbers = {
        "filters": "-".join(str(conv.out_channels) for conv in extractor.fusion.convs),
        "dense": len(mask_head.boundary_refinement.dense_modules),
    }
    return notes, numbers


def draw() -> str:
    """The figure as SVG."""
    notes, numbers = run()
    found = notes.shapes
    parts = []
    for name, (label, x, y, colour) in BOXES.items():
        parts += box(x, y, label.format(**numbers), size(found[name]), colour)
    parts += [arrow(BOXES[start][1:3], BOXES[end][1:3]) for start, end in ARROWS]
    parts += key(20, 40, "mask branch of Mask R-CNN", PLAIN)
    parts += key(20, 262, "contextual fusion", FUSION)
    parts += key(445, 342, "deconvolutional pyramid", PYRAMID)
    parts += key(730, 262, "improved boundary refinement", REFINEMENT)
    parts += key(390, 452, "quasi-multitask learning, in training only", QUASI)
    target = f"masks of {found['quasi'][2]} x {found['quasi'][3]}, loss_mask_quasi"
    parts.append(text(BOXES["quasi"][1] + BOX_WIDTH / 2, 474, target))
    final = f"masks of {found['refinement'][2]} x {found['refinement'][3]}, loss_mask"
    parts.append(text(BOXES["refinement"][1] + BOX_WIDTH / 2, 54, final))
    return figure(WIDTH, HEIGHT, "Data flow of MaskPlus", parts)


if __name__ == "__main__":
    TARGET.write_text(draw())
    print(TARGET)
