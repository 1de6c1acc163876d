# A ResNet-18 of a quarter of the width that has seen Shapes: `backbone={{_base_.r18_w16}}`, with
# a neck for [16, 32, 64, 128] channels. The weights are the backbone's of a Mask R-CNN that learned
# on pictures of its own (configs/shapes/mask-rcnn_r18-w16_10k_shapes.py); they do here what
# ImageNet's do elsewhere.
r18_w16 = dict(
    base_channels=16,
    stem_channels=16,
    init_cfg=dict(
        _delete_=True,
        type="Pretrained",
        checkpoint="{{ fileDirname }}/../../shapes/mask-rcnn_r18-w16_10k_shapes.pth",
        prefix="backbone.",
    ),
)
