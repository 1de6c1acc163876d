"""The fusers of the pictures on docs/results/refine.md, for tools/compare_fusers.py."""

fusers = {
    "heuristic": dict(type="HeuristicFusion"),
    "ours": dict(type="SoftOcclusionFusion", sigma=2.5, unknown_erasing=dict()),
}
