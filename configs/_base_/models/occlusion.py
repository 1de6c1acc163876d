# The strong baseline's network, with all three priors: `occlusion_head={{_base_.occlusion}}`.
# (Options go to `model`: --cfg-options model.occlusion_head.use_labels=False)
occlusion = dict(
    type="OcclusionHead",
    num_classes=80,
    roi_extractor=dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
        out_channels=256,
        featmap_strides=[4, 8, 16, 32],
    ),
    # Table 6.
    use_masks=True,
    use_features=True,
    use_labels=True,
    # Ours: the paper's supplement, which is not at hand, may tell.
    overlap_thr=0.2,
    score_thr=0.5,
    match_iou=0.5,
    embedding=32,
)
