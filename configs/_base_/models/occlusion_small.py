# The occlusion network of a quarter of the paper's channels, as the features are:
# `occlusion_head={{_base_.occlusion}}`.
occlusion = dict(
    type="OcclusionHead",
    num_classes=8,
    roi_extractor=dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
        out_channels=64,
        featmap_strides=[4, 8, 16, 32],
    ),
    # Few instances of these short trainings are sure, and few masks good: more pairs to learn from,
    # and more to judge.
    train_score_thr=0.1,
    match_iou=0.3,
    conv_channels=128,
    fc_channels=256,
)
