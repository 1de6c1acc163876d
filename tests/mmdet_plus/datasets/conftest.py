import pytest

from mmdet_plus.datasets import make_shapes


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A small Shapes set, for reading only."""
    root = tmp_path_factory.mktemp("shapes") / "set"
    return make_shapes(root, num_train=10, num_val=6, seed=3, workers=2, progress=False)
