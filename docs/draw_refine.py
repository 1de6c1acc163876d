"""Draw the data flow of IBPP from the code as it is: docs/_static/refine.svg.

    python docs/draw_refine.py

One iteration of configs/refine/ibpp-t1_r50_fpn_gn_180k_coco-panoptic.py is run, and every box tells
the channels and the size of what the code had there. A test draws it anew, compares, and finds the
arrows in the graph of the gradient.
"""

from pathlib import Path

import torch
from drawing import BOX_HEIGHT, BOX_WIDTH, Notes, arrow, box, figure, key, size, text
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/refine/ibpp-t1_r50_fpn_gn_180k_coco-panoptic.py"
TARGET = ROOT / "docs/_static/refine.svg"
SEMANTIC, INSTANCE = "#dcf2dc", "#dce6ff"
WIDTH, HEIGHT = 960, 430
# The paper's name, left edge, middle, colour.
BOXES = {
    "F_sem": ("F_sem", 20, 90, SEMANTIC),
    "P_0": ("P_sem, t - 1", 180, 90, SEMANTIC),
    "to_semantics": ("[P_ins ; F_sem]", 660, 90, SEMANTIC),
    "P_1": ("P_sem, t", 820, 90, SEMANTIC),
    "f_sem": ("f_sem", 20, 220, SEMANTIC),
    "p_sem": ("p_sem, t - 1", 180, 220, SEMANTIC),
    "P_ins": ("P_ins, t", 660, 220, INSTANCE),
    "f_ins": ("f_ins", 20, 350, INSTANCE),
    "enhanced": ("f_ins + f_sem", 180, 350, INSTANCE),
    "to_masks": ("[+ ; p_sem]", 340, 350, INSTANCE),
    "masks": ("m_ins, t", 500, 350, INSTANCE),
}
# With the equation, or what else happens on the way, and where that stands.
ARROWS = (
    ("F_sem", "P_0", "H_sem", (156, 80)),
    ("F_sem", "f_sem", "RoIAlign (2)", (118, 160)),
    ("P_0", "p_sem", "RoIAlign (3)", (278, 160)),
    ("f_ins", "enhanced", "", (0, 0)),
    ("f_sem", "enhanced", "", (0, 0)),
    ("enhanced", "to_masks", "", (0, 0)),
    ("p_sem", "to_masks", "", (0, 0)),
    ("to_masks", "masks", "(4)", (476, 340)),
    ("masks", "P_ins", "RoI-Flatten (5)", (690, 295)),
    ("P_ins", "to_semantics", "", (0, 0)),
    ("to_semantics", "P_1", "(6)", (796, 80)),
)
# Over what lies between its ends.
DETOUR = ("F_sem", "to_semantics")


def run() -> Notes:
    """Run an iteration; what each box gave."""
    cfg = Config.fromfile(CONFIG)
    import_modules_from_strings(**cfg.custom_imports)
    with DefaultScope.overwrite_default_scope("mmdet"):
        settings = dict(train_cfg=cfg.model.train_cfg.rcnn, test_cfg=None)
        head = MODELS.build(dict(cfg.model.roi_head, **settings))
        semantic_head = MODELS.build(cfg.model.semantic_head)
    projection = head.projection
    notes = Notes()
    # Enhanced features come after t.
    notes.watch(projection, {1: "enhanced"})
    notes.watch(projection.mask_head(1), {0: "to_masks"}, ["masks"])
    notes.watch(projection.semantic_heads[0], {0: "P_ins", 1: "F_sem"}, ["P_1"])
    notes.watch(projection.semantic_heads[0].conv, {0: "to_semantics"})
    notes.watch(projection.roi_align, outputs=["f_sem", "p_sem"])
    notes.watch(head.mask_roi_extractor, outputs=["f_ins"])
    levels = tuple(
        torch.zeros(1, 256, 256 // s, 256 // s, requires_grad=True) for s in (4, 8, 16, 32)
    )
    semantics = semantic_head(levels)
    notes.note("P_0", semantics["seg_preds"])
    state = [*levels, semantics["seg_feats"], semantics["seg_preds"]]
    head._mask_forward(state, torch.tensor([[0.0, 8, 8, 104, 104]]))
    return notes


def draw() -> str:
    """The figure as SVG."""
    found = run().shapes
    parts = []
    for name, (label, x, y, colour) in BOXES.items():
        parts += box(x, y, label, size(found[name]), colour)
    for start, end, words, place in ARROWS:
        parts.append(arrow(BOXES[start][1:3], BOXES[end][1:3]))
        if words:
            parts.append(text(*place, words, "#555"))
    (left, y), (right, _) = (BOXES[name][1:3] for name in DETOUR)
    start, end = left + BOX_WIDTH / 2, right + BOX_WIDTH / 2
    top = y - BOX_HEIGHT / 2
    parts.append(
        f'<polyline points="{start:g},{top:g} {start:g},40 {end:g},40 {end:g},{top:g}" '
        'fill="none" stroke="#333" marker-end="url(#tip)"/>'
    )
    right = BOXES["P_1"][1] + BOX_WIDTH / 2
    parts.append(text(right, 134, "to the next iteration,"))
    parts.append(text(right, 150, "loss_seg_t"))
    parts.append(text(BOXES["masks"][1] + BOX_WIDTH / 2, 392, "loss_mask_t"))
    parts += key(20, 415, "semantic segmentation", SEMANTIC)
    parts += key(220, 415, "instance segmentation", INSTANCE)
    return figure(WIDTH, HEIGHT, "Data flow of IBPP", parts)


if __name__ == "__main__":
    TARGET.write_text(draw())
    print(TARGET)
