"""Systems for instance and panoptic segmentation on mmdet; import the rooms, not this package."""

__version__ = "0.1.0"
