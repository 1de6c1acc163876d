"""Segmentation side of MMPlus: systems built on mmsegmentation."""
