"""What the figures of the data flow are made of: SVG boxes, arrows, texts, and notes of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

BOX_WIDTH, BOX_HEIGHT = 112, 46
PLAIN = "#e8eef7"


class Notes:
    """What a run of the model gave for each box, and which box it came from.

    Attributes:
        shapes: By box.
    """

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._nodes: dict[str, Any] = {}

    def note(self, name: str, tensor: Tensor) -> None:
        """Note a box's tensor; at once, before something is done to it in place."""
        self.shapes[name] = tuple(tensor.shape)
        self._nodes[name] = tensor.grad_fn

    def watch(
        self,
        module: nn.Module,
        inputs: Mapping[int, str] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        """Note what a module is given, by place, and what it gives, one box for each call."""
        calls = iter(outputs)

        def hook(_module: nn.Module, given: tuple, result: Any) -> None:
            for place, name in (inputs or {}).items():
                self.note(name, given[place])
            name = next(calls, None)
            if name is not None:
                self.note(name, result)

        module.register_forward_hook(hook)

    def arrows(self) -> set[tuple[str, str]]:
        """The pairs of boxes that the graph of the gradient joins, no other box between."""
        boxes = {node: name for name, node in self._nodes.items()}
        if None in boxes or len(boxes) < len(self._nodes):
            raise ValueError("each box needs a tensor of its own, with a gradient")
        found = set()
        for end, node in self._nodes.items():
            waiting, seen = [node], set()
            while waiting:
                for before, _ in waiting.pop().next_functions:
                    if before in boxes:
                        found.add((boxes[before], end))
                    elif before is not None and before not in seen:
                        seen.add(before)
                        waiting.append(before)
        return found


def figure(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Put the parts on a white ground."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'font-family="sans-serif" font-size="12" role="img" aria-label="{title}">',
            f"<title>{title}</title>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="#333"/></marker>'
            "</defs>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def box(x: float, y: float, label: str, detail: str, colour: str) -> list[str]:
    """A box with two lines; ``x`` is its left edge and ``y`` its middle."""
    middle = x + BOX_WIDTH / 2
    return [
        f'<rect x="{x}" y="{y - BOX_HEIGHT / 2:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" '
        f'rx="6" fill="{colour}" stroke="#333"/>',
        text(middle, y - 4, label),
        text(middle, y + 14, detail, "#555"),
    ]


def size(shape: Sequence[int]) -> str:
    """Channels, rows and columns of a (N, C, H, W) shape."""
    _, channels, rows, cols = shape
    return f"{channels}: {rows} x {cols}"


def text(x: float, y: float, words: str, colour: str = "#111") -> str:
    """Words about a middle."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" fill="{colour}">{words}</text>'


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """An arrow from box to box, given by their left edges and middles."""
    (x1, y1), (x2, y2) = start, end
    if y1 == y2:
        points = (x1 + BOX_WIDTH, y1, x2, y2) if x1 < x2 else (x1, y1, x2 + BOX_WIDTH, y2)
    else:
        half = BOX_HEIGHT / 2 if y1 < y2 else -BOX_HEIGHT / 2
        points = (x1 + BOX_WIDTH / 2, y1 + half, x2 + BOX_WIDTH / 2, y2 - half)
    a, b, c, d = points
    return (
        f'<line x1="{a:g}" y1="{b:g}" x2="{c:g}" y2="{d:g}" stroke="#333" marker-end="url(#tip)"/>'
    )


def key(x: float, y: float, words: str, colour: str) -> list[str]:
    """What a colour stands for."""
    return [
        f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>',
        f'<text x="{x + 18}" y="{y}" fill="#333">{words}</text>',
    ]
