# REFINE with ResNeXt-101 and deformable convolutions (Table 1).
_base_ = "./refine_r101-dcn_fpn_coco-panoptic.py"

load_from = "work_dirs/cascade-ibpp-t3_x101-dcn_fpn_180k_coco-panoptic/iter_180000.pth"
model = dict(backbone=dict(type="ResNeXt", groups=64, base_width=4))
