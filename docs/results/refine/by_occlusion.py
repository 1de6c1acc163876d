"""The fusers by a network's occlusions, for tools/compare_fusers.py."""

fusers = {
    "occlusion": dict(type="OcclusionFusion"),
    "soft_occlusion": dict(type="SoftOcclusionFusion"),
}
