# Registers the parts of MMPlus on mmsegmentation.
custom_imports = dict(
    imports=["mmseg_plus.bpr", "mmdet_plus.engine"],
    allow_failed_imports=False,
)
