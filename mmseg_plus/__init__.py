"""Segmentation side of MMPlus: systems built on mmsegmentation, and what both sides stand on."""

import warnings

# mmengine imports pkg_resources, several times over, to read a config that has an `mmdet::` or
# `mmseg::` base. The pinned setuptools still has it, and a user can do nothing about this warning.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated as an API")
