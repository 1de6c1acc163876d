# Registers the parts of MMPlus; every config of the zoo inherits from here.
custom_imports = dict(
    imports=[
        "mmdet_plus.blendmask",
        "mmdet_plus.combined",
        "mmdet_plus.datasets",
        "mmdet_plus.engine",
        "mmdet_plus.evaluation",
        "mmdet_plus.maskplus",
        "mmdet_plus.mr_rcnn",
        "mmdet_plus.panoptic_fusion",
        "mmdet_plus.refine",
    ],
    allow_failed_imports=False,
)
