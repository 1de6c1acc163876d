"""AdelaiDet's names of BlendMask's parameters, written down apart from the converter."""


def names_of(
    blocks, levels=(3, 4, 5), tops=(6, 7), towers=(("cls", 4), ("bbox", 4)), norm_levels=0, **more
):
    """Pairs of names (theirs, ours).

    Args:
        blocks: Convolutions, of a block, and blocks of each stage: (3, (3, 4, 6, 3)) for R-50.
        levels: Of the pyramid, with lateral connections.
        tops: Levels above them.
        towers: Kinds (cls, bbox, share) and numbers of convolutions.
        norm_levels: Batch normalisations of a tower's convolution; 0: one group normalisation.
        **more: ``proto_convs`` (3), ``downsampled`` stages, ``deformable`` (stage, block) pairs,
            ``semantic`` (bool).
    """
    pairs = []

    def add(theirs, ours, leaves):
        pairs.extend((f"{theirs}.{leaf}", f"{ours}.{leaf}") for leaf in leaves)

    plain, affine = ("weight", "bias"), ("weight", "bias")
    stats = (*affine, "running_mean", "running_var")
    body, ours = "backbone.bottom_up", "backbone"
    add(f"{body}.stem.conv1", f"{ours}.conv1", ["weight"])
    add(f"{body}.stem.conv1.norm", f"{ours}.bn1", stats)
    convs, stages = blocks
    for stage, number in enumerate(stages):
        for block in range(number):
            a, b = f"{body}.res{stage + 2}.{block}", f"{ours}.layer{stage + 1}.{block}"
            for conv in range(1, convs + 1):
                add(f"{a}.conv{conv}", f"{b}.conv{conv}", ["weight"])
                add(f"{a}.conv{conv}.norm", f"{b}.bn{conv}", stats)
            if block == 0 and stage in more.get("downsampled", (0, 1, 2, 3)):
                add(f"{a}.shortcut", f"{b}.downsample.0", ["weight"])
                add(f"{a}.shortcut.norm", f"{b}.downsample.1", stats)
            if (stage, block) in more.get("deformable", ()):
                add(f"{a}.conv2_offset", f"{b}.conv2.conv_offset", plain)
    for place, level in enumerate(levels):
        add(f"backbone.fpn_lateral{level}", f"neck.lateral_convs.{place}.conv", plain)
        add(f"backbone.fpn_output{level}", f"neck.fpn_convs.{place}.conv", plain)
    for place, level in enumerate(tops):
        add(f"backbone.top_block.p{level}", f"neck.fpn_convs.{len(levels) + place}.conv", plain)
    head = "proposal_generator.fcos_head"
    ours_of = dict(cls="cls_convs", bbox="reg_convs", share="shared_convs")
    for tower, number in towers:
        for i in range(number):
            a, b = f"{head}.{tower}_tower", f"bbox_head.{ours_of[tower]}.{i}"
            add(f"{a}.{3 * i}", f"{b}.conv", plain)
            if not norm_levels:
                add(f"{a}.{3 * i + 1}", f"{b}.gn", affine)
            for level in range(norm_levels):
                add(f"{a}.{3 * i + 1}.{level}", f"{b}.norms.{level}", stats)
    add(f"{head}.cls_logits", "bbox_head.conv_cls", plain)
    add(f"{head}.bbox_pred", "bbox_head.conv_reg", plain)
    add(f"{head}.ctrness", "bbox_head.conv_centerness", plain)
    add("top_layer", "bbox_head.top_layer", plain)
    a, b, convs = "basis_module", "mask_head.bases", more.get("proto_convs", 3)
    places = [(f"refine.{i}", f"level_convs.{i}") for i in range(3)]
    places += [(f"tower.{i}", f"convs.{i}") for i in range(convs)]
    places += [(f"tower.{convs + 1}", "fine_convs.0")]
    for theirs, mine in places:
        add(f"{a}.{theirs}.0", f"{b}.{mine}.conv", ["weight"])
        add(f"{a}.{theirs}.1", f"{b}.{mine}.bn", stats)
    add(f"{a}.tower.{convs + 2}", f"{b}.conv_bases", plain)
    for i, place in enumerate((0, 3)):
        add(f"{a}.seg_head.{place}", f"{b}.sem_convs.{i}.conv", ["weight"])
        add(f"{a}.seg_head.{place + 1}", f"{b}.sem_convs.{i}.bn", stats)
    add(f"{a}.seg_head.6", f"{b}.conv_sem", plain)
    if more.get("semantic"):
        a, b = "panoptic_module", "semantic_head"
        for level in range(4):
            for i in range(max(level, 1)):
                conv = f"{b}.conv_upsample_layers.{level}.conv.{i}"
                add(f"{a}.p{level + 2}.{2 * i}", f"{conv}.conv", ["weight"])
                add(f"{a}.p{level + 2}.{2 * i}.norm", f"{conv}.gn", affine)
        add(f"{a}.predictor", f"{b}.conv_logits", plain)
    return pairs


#: Of configs/shapes/blendmask_r18_shapes.py and its panoptic form.
SMALL = dict(
    blocks=(2, (2, 2, 2, 2)),
    downsampled=(1, 2, 3),
    tops=(6,),
    towers=(("cls", 2), ("bbox", 2)),
    proto_convs=2,
)
SMALL_PANOPTIC = dict(SMALL, levels=(2, 3, 4, 5), semantic=True)


def theirs_of(model, **options):
    """A model's parameters by AdelaiDet's names."""
    weights = model.state_dict()
    return {theirs: weights[ours].clone() for theirs, ours in names_of(**options)}
