# The tower has batch instead of group normalisation, one for each level.
_base_ = "./blendmask-rt_r50-caffe_fpn_4x_coco.py"

model = dict(
    bbox_head=dict(
        norm_per_level=True,
        norm_cfg=dict(_delete_=True, type="SyncBN", requires_grad=True),
    ),
)
