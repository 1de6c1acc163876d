"""Systems for instance and panoptic segmentation on mmdet; import the rooms, not this package."""

import mmseg_plus  # noqa: F401  # its filter of a warning

__version__ = "0.1.0"
