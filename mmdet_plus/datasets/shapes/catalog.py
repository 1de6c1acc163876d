"""What the Shapes data set consists of: its classes, their ids, colours and customary depth."""

THING_CLASSES = ("blob", "slab", "ring", "star", "crescent", "ribbon", "comb", "lattice")
STUFF_CLASSES = ("speckle", "stripe", "check", "wave", "cloud")
CLASSES = THING_CLASSES + STUFF_CLASSES

# Drawing colours for viewers only; the colours in the pictures follow CUSTOMARY_SHARE.
PALETTE = [
    (214, 39, 40),
    (140, 86, 75),
    (255, 187, 20),
    (31, 119, 230),
    (148, 103, 189),
    (23, 230, 207),
    (44, 180, 44),
    (255, 100, 200),
    (110, 110, 70),
    (200, 200, 160),
    (120, 60, 20),
    (60, 110, 150),
    (170, 200, 225),
]

# As lemons are mostly yellow: this share of the things has about the hue of its class (the classes
# stand evenly round the colour circle), the others any colour. It lets a small network find its
# feet within minutes; for the rest it must tell them by their shape.
CUSTOMARY_SHARE = 0.6
HUE_NOISE = 12.0

# Where a class customarily lies: larger is nearer to the viewer. A thing's depth is its class's
# layer plus noise of LAYER_NOISE, so a difference of 1 decides the order in about 92 % of the
# pairs, 0.3 in about 66 %, and things of one layer lie either way round.
LAYERS = {
    "slab": 0.0,
    "blob": 0.8,
    "crescent": 1.0,
    "ring": 1.3,
    "lattice": 1.6,
    "star": 1.5,
    "comb": 1.6,
    "ribbon": 2.0,
}
LAYER_NOISE = 0.5

# Things that are drawn together, as ties with persons and cups with tables: carrier -> riders.
RIDERS = {
    "slab": ("star", "comb", "ring", "star"),
    "blob": ("ribbon", "ribbon", "ribbon", "lattice"),
    "crescent": ("star", "ribbon", "lattice"),
}


def category_id(name: str) -> int:
    """The COCO category id of a class: 1 to 8 for things, 9 to 13 for stuff."""
    return CLASSES.index(name) + 1


def thing_categories() -> list[dict]:
    """The ``categories`` of the instances JSON."""
    return [dict(id=category_id(name), name=name, supercategory="thing") for name in THING_CLASSES]


def panoptic_categories() -> list[dict]:
    """The ``categories`` of the panoptic JSON, things first."""
    return [
        dict(
            id=category_id(name),
            name=name,
            supercategory="thing" if name in THING_CLASSES else "stuff",
            isthing=int(name in THING_CLASSES),
            color=list(PALETTE[index]),
        )
        for index, name in enumerate(CLASSES)
    ]
