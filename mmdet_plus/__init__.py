"""Systems for instance and panoptic segmentation on mmdet; import the rooms, not this package."""

import warnings

__version__ = "0.1.0"

# mmengine imports pkg_resources, several times over, to read a config that has an `mmdet::` base.
# The pinned setuptools still has it, and a user can do nothing about this warning.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated as an API")
