"""The fuser by OANet's ranking, for tools/compare_fusers.py."""

fusers = {"spatial_ranking": dict(type="SpatialRankingFusion")}
