"""A flame graph from folded stacks: where the samples were, widest first, as an SVG without scripts.

    py-spy record --rate 200 --function --format raw --output stacks.txt -- python -m bench.steps
    python -m bench.flame "what was running" < stacks.txt > bench/flame.svg

A box is as wide as its share of all samples; what is below half a percent is left out, and so are imports and threads
that wait for work. Nothing of the machine is in it: a frame is a function and its module's last two names.
"""

import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape

WIDTH = 1200
ROW = 17
LEAST = 0.005
CHARACTER = 6.6
_WAITS = ("_connection_worker_thread", "EpollSelector.select")
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^()]*?)(:\d+)?\)$")


@dataclass(slots=True)
class Node:
    """A function, called by those above it."""

    name: str
    samples: int = 0
    callees: dict[str, "Node"] = field(default_factory=dict)

    def callee(self, name: str) -> "Node":
        """That one, called from here."""
        return self.callees.setdefault(name, Node(name))

    @property
    def depth(self) -> int:
        """Of the stack from here."""
        return 1 + max((each.depth for each in self.callees.values()), default=0)


def tree(lines: Iterable[str]) -> Node:
    """All stacks, merged from their roots."""
    root = Node("all")
    for line in lines:
        stack, _, count = line.strip().rpartition(" ")
        leaf = stack.rpartition(";")[2].partition(" ")[0]
        if not stack or "<frozen importlib" in stack or leaf in _WAITS:
            continue
        samples, node = int(count), root
        node.samples += samples
        for frame in map(_short, stack.split(";")):
            if frame == node.name or frame.startswith("process "):
                continue  # a function that calls itself; a command line, which names folders
            node = node.callee(frame)
            node.samples += samples
    return root


def _short(frame: str) -> str:
    found = _FRAME.match(frame)
    if found is None:
        return frame
    file = "/".join(found["file"].replace("\\", "/").split("/")[-2:])
    return f"{found['function']} ({file})"


def boxes(node: Node, left: float, level: int, total: int) -> Iterator[tuple[Node, float, int]]:
    """Each node with where it begins, between 0 and 1, and how deep it is."""
    yield node, left, level
    for callee in sorted(node.callees.values(), key=lambda each: -each.samples):
        if callee.samples / total >= LEAST:
            yield from boxes(callee, left, level + 1, total)
        left += callee.samples / total


def svg(root: Node, title: str) -> str:
    """The picture, roots at the top."""
    total = root.samples or 1
    drawn = list(boxes(root, 0.0, 0, total))
    height = (max(level for _, _, level in drawn) + 3) * ROW
    font = 'font-family="monospace" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {font}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fffdf7"/>',
        f'<text x="6" y="14" font-size="13">{escape(title)}: {total} samples</text>',
    ]
    parts += [_box(node, left, level, total) for node, left, level in drawn]
    return "\n".join([*parts, "</svg>\n"])


def _box(node: Node, left: float, level: int, total: int) -> str:
    share = node.samples / total
    x, y, width = left * WIDTH, (level + 1.4) * ROW, share * WIDTH
    shown = node.name[: max(0, int((width - 6) / CHARACTER))]
    hue = 20 + zlib.crc32(node.name.rpartition("(")[2].encode()) % 40
    text = f'<text x="{x + 3:.1f}" y="{y + 12:.1f}">{escape(shown)}</text>' if len(shown) > 2 else ""
    return (
        f"<g><title>{escape(node.name)}: {share:.1%}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width - 0.5, 0.5):.1f}" height="{ROW - 1}" '
        f'fill="hsl({hue},80%,72%)"/>{text}</g>'
    )


def main() -> None:
    """From standard input to standard output; the title is the argument."""
    sys.stdout.write(svg(tree(sys.stdin), " ".join(sys.argv[1:])))


if __name__ == "__main__":
    main()
