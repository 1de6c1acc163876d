# COCO panoptic at 800 x 1333 pixels, without end: for schedules counted in iterations.
_base_ = "./coco_panoptic.py"

train_dataloader = dict(sampler=dict(_delete_=True, type="InfiniteSampler"))
