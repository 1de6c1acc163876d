"""BlendMask: Top-Down Meets Bottom-Up for Instance Segmentation (Chen et al., CVPR 2020)."""

from .blender import Blender
from .blending_hook import BlendingVisualizationHook
from .blendmask import BlendMask
from .blendmask_head import BlendMaskHead
from .instance_crop import InstanceCrop
from .interval_resnet import IntervalResNet
from .proto_net import ProtoNet
from .stuff_head import StuffHead

__all__ = [
    "BlendMask",
    "BlendMaskHead",
    "Blender",
    "BlendingVisualizationHook",
    "InstanceCrop",
    "IntervalResNet",
    "ProtoNet",
    "StuffHead",
]
