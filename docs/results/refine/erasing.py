"""Unknown Erasing with several thresholds and dilations, for tools/compare_fusers.py."""

fusers = {"none": dict(type="HeuristicFusion")} | {
    f"{threshold}, {dilation} px": dict(
        type="HeuristicFusion", unknown_erasing=dict(threshold=threshold, dilation=dilation)
    )
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.7)
    for dilation in (0, 1, 3, 6)
}
