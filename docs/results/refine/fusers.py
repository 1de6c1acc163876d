"""The fusers of Tables 3 and 5 for tools/compare_fusers.py, on a model with the whole network."""

_erasing = dict(threshold=0.5, dilation=3)
fusers = {
    "heuristic": dict(type="HeuristicFusion"),
    "heuristic, UE": dict(type="HeuristicFusion", unknown_erasing=_erasing),
    "strong baseline": dict(type="OcclusionFusion"),
    "SOE 1.0": dict(type="SoftOcclusionFusion", sigma=1.0),
    "SOE 2.0": dict(type="SoftOcclusionFusion", sigma=2.0),
    "SOE 2.5": dict(type="SoftOcclusionFusion", sigma=2.5),
    "SOE 4.0": dict(type="SoftOcclusionFusion", sigma=4.0),
    "SOE 2.5, UE": dict(type="SoftOcclusionFusion", sigma=2.5, unknown_erasing=_erasing),
}
