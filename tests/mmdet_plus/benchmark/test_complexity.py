"""Parameters and FLOPs of mask branches."""

import pytest

from mmdet_plus.benchmark.complexity import complexity, markdown

NAMES = (
    "mask-rcnn_r18-w16_shapes-640",
    "maskplus_r18-w16_contextual-fusion_shapes-640",
    "maskplus_r18-w16_deconv-pyramid_shapes-640",
    "maskplus_r18-w16_boundary-refinement_shapes-640",
    "maskplus_r18-w16_quasi-multitask_shapes-640",
    "maskplus_r18-w16_biased-training_shapes-640",
    "maskplus_r18-w16_shapes-640",
)
ROIS = 3


@pytest.fixture(scope="module")
def record():
    return complexity(NAMES, size=(64, 96), rois=ROIS)


def more(record, number, key):
    return record["rows"][number][key] - record["rows"][0][key]


def conv(inputs, outputs, kernel):
    """Parameters of a convolution with a bias."""
    return inputs * outputs * kernel**2 + outputs


def test_the_baseline(record):
    row = record["rows"][0]
    assert row["model"] == NAMES[0] and row["training_parameters"] == 0
    # Multiplications of four convolutions, the deconvolution and the logits.
    wanted = 14**2 * (4 * 64 * 64 * 9 + 64 * 64 * 4) + 28**2 * 64 * 8
    assert row["mask_flops"] == pytest.approx(ROIS * wanted, rel=0.01)


def test_contextual_fusion_counts_once_an_image(record):
    filters = (64, 180, 128, 128, 64)
    pairs = list(zip(filters, filters[1:], strict=False))
    assert more(record, 1, "parameters") == sum(conv(*pair, 3) for pair in pairs)
    flops = 14**2 * 9 * sum(a * b for a, b in pairs)
    assert more(record, 1, "mask_flops") == pytest.approx(flops, rel=0.01)


def test_deconvolutional_pyramid(record):
    assert more(record, 2, "parameters") == 2 * (conv(64, 64, 2) + conv(64, 64, 3))
    up = 64 * 64 * 4 * (14**2 + 28**2)
    down = 64 * 64 * 9 * (28**2 + 14**2)
    assert more(record, 2, "mask_flops") == pytest.approx(ROIS * (up + down), rel=0.01)


def test_boundary_refinement(record):
    sizes = [8 + 4 * i for i in range(5)]
    # Per module: two normalisations, two slopes, two convolutions; then the residual.
    modules = [2 * n + 2 * 16 + 2 + conv(n, 16, 3) + conv(16, 4, 3) for n in sizes[:4]]
    assert more(record, 3, "parameters") == sum(modules) + conv(sizes[4], 8, 1)
    assert more(record, 3, "mask_flops") > 0


@pytest.mark.parametrize("number", [4, 5])
def test_quasi_multitask_and_biased_training_cost_nothing_at_test(record, number):
    assert more(record, number, "parameters") == more(record, number, "mask_flops") == 0
    branch = conv(64, 64, 3) * 4 + conv(64, 8, 1)
    assert record["rows"][number]["training_parameters"] == (branch if number == 4 else 0)


def test_all_techniques_add_up(record):
    # The refinement, too, is the same: it follows logits of the same size.
    for key in ("parameters", "mask_flops"):
        parts = sum(more(record, number, key) for number in range(1, 6))
        assert more(record, 6, key) == parts, key


def test_table(record):
    first, *rows = markdown(record).splitlines()[2:]
    assert first.startswith(f"| {NAMES[0]} |") and first.count("+0.0") == 2
    assert len(rows) == 6 and all(row.count("|") == 7 for row in rows)
