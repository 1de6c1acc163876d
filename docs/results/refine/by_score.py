"""The heuristic without and with Unknown Erasing, for tools/compare_fusers.py."""

fusers = {
    "heuristic": dict(type="HeuristicFusion"),
    "heuristic, UE": dict(type="HeuristicFusion", unknown_erasing=dict(threshold=0.5, dilation=3)),
}
