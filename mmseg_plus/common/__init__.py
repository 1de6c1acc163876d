"""What both sides of MMPlus stand on: files, errors, COCO records, differences of the stacks.

It lies here because detection may import segmentation and not the other way round.
"""
