"""What a benchmark's run found: a table in Markdown, ratios first, and a plot."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Results", "write_report"]

Results = dict[str, dict[str, list[float]]]
"""What was measured -> system -> each repetition's value."""

_OURS: Final = "rxfiles"
_NO_DIGEST: Final = "rxfiles, digest=None"
_MEMORY: Final = "rxfiles, memory"
_TLS: Final = "rxfiles, TLS"
_STOCK: Final = "rsocket, read buffer 1024"
_TUTORIAL: Final = "tutorial, read buffer 1024"


class _Goal(NamedTuple):
    """Ours against a peer: at least `bound` times it, or at most."""

    what: str
    ours: str
    peer: str
    bound: float
    at_most: bool = False


_GOALS: Final = [
    *(_Goal(f"stream {way}, MB/s", _OURS, "asyncio streams", 1.0) for way in ("down", "up")),
    _Goal("stream down, MB/s", _OURS, "aiohttp, tuned", 1.0),
    _Goal("stream up, MB/s", _OURS, "aiohttp, tuned", 1.3),
    *(_Goal(f"stream {way}, MB/s", _OURS, "grpc.aio", 2.0) for way in ("down", "up")),
    *(_Goal(f"stream {way}, MB/s", _OURS, _STOCK, 6.0) for way in ("down", "up")),
    *(_Goal(f"stream {way}, MB/s", _NO_DIGEST, "aiohttp, tuned", 1.5) for way in ("down", "up")),
    *(_Goal(f"stream {way}, MB/s", _NO_DIGEST, "sendfile + splice", 0.8) for way in ("down", "up")),
    *(_Goal(f"whole file {way}, MB/s", _MEMORY, _TUTORIAL, 4.0) for way in ("down", "up")),
    *(
        _Goal(f"{verb} of 4 KiB, 32 in flight, 1/s", _MEMORY, peer, bound)
        for verb in ("get", "put")
        for peer, bound in (("grpc.aio", 2.0), ("aiohttp, 1 connection", 2.5), ("aiohttp, 32 connections", 1.0))
    ),
    _Goal("small request during down, p99 ms", _OURS, _STOCK, 0.3, at_most=True),
]
_ENDS: Final = ("client", "server")
_WHOLE_AT_CLIENT: Final = "peak of the client above idle, MiB: whole file"
_MAX_P99_MS: Final = 10.0
_MAX_PEAK_MIB: Final = 16.0
_MAX_TLS_PEAK_MIB: Final = 32.0


def write_report(results: Mapping[str, Mapping[str, list[float]]], about: str, folder: Path) -> str:
    """Writes `bench.md` and `bench.png` into the folder.

    Returns:
        The table.
    """
    medians = {
        what: {system: statistics.median(values) for system, values in systems.items()}
        for what, systems in results.items()
    }
    lines = ["# Benchmark", "", about, "", *_goals(medians), "", *_all(results, medians)]
    folder.mkdir(exist_ok=True)
    text = "\n".join(lines) + "\n"
    (folder / "bench.md").write_text(text)
    _plot(medians, folder / "bench.png")
    return text


def _goals(medians: dict[str, dict[str, float]]) -> list[str]:
    lines = ["## Ratios", "", "| what | of | to | ratio | goal | reached |", "|---|---|---|---:|---:|---|"]

    def add(what: str, ours: str, peer: str, found: float, goal: str, reached: bool) -> None:
        lines.append(f"| {what} | {ours} | {peer} | {found:.2f} | {goal} | {'yes' if reached else '**no**'} |")

    for goal in _GOALS:
        systems = medians.get(goal.what, {})
        if goal.ours in systems and goal.peer in systems:
            ratio = systems[goal.ours] / systems[goal.peer]
            reached = ratio <= goal.bound if goal.at_most else ratio >= goal.bound
            add(goal.what, goal.ours, goal.peer, ratio, f"{'<=' if goal.at_most else '>='} {goal.bound}", reached)
    for what, systems in medians.items():
        value = systems.get(_OURS, systems.get("rxfiles, slow disk"))
        if value is None:
            continue
        if what.endswith("p99 ms"):
            add(what, _OURS, "-", value, f"<= {_MAX_P99_MS:.0f}", value <= _MAX_P99_MS)
        # A client's whole file is in memory because that is what was asked for.
        if "above idle" in what and not what.startswith(_WHOLE_AT_CLIENT):
            add(what, _OURS, "-", value, f"<= {_MAX_PEAK_MIB:.0f}", value <= _MAX_PEAK_MIB)
        if "above idle" in what and (value := systems.get(_TLS)) is not None:
            add(what, _TLS, "-", value, f"<= {_MAX_TLS_PEAK_MIB:.0f}", value <= _MAX_TLS_PEAK_MIB)
    return lines


def _all(results: Mapping[str, Mapping[str, list[float]]], medians: dict[str, dict[str, float]]) -> list[str]:
    lines: list[str] = []
    for what, systems in results.items():
        lines += [f"## {what}", "", "| system | median | least | most |", "|---|---:|---:|---:|"]
        for system, values in systems.items():
            digits = 0 if min(values) >= 100 else 2
            numbers = (medians[what][system], min(values), max(values))
            lines.append(f"| {system} | " + " | ".join(f"{number:.{digits}f}" for number in numbers) + " |")
        lines.append("")
    return lines


def _plot(medians: dict[str, dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("MB/s, disk to disk", {way: medians.get(f"stream {way}, MB/s", {}) for way in ("down", "up")}),
        ("MB/s, 16 at once", {way: medians.get(f"16 at once {way}, MB/s", {}) for way in ("down", "up")}),
        ("MB/s, whole file in memory", {way: medians.get(f"whole file {way}, MB/s", {}) for way in ("down", "up")}),
        (
            "4 KiB requests a second, 32 in flight",
            {verb: medians.get(f"{verb} of 4 KiB, 32 in flight, 1/s", {}) for verb in ("get", "put")},
        ),
        (
            "ms, small request during a large transfer, p99",
            {way: medians.get(f"small request during {way}, p99 ms", {}) for way in ("down", "up")},
        ),
        (
            "MiB above idle, the larger end, streams",
            {
                way: {
                    system: max(medians[f"peak of the {end} above idle, MiB: stream {way}"][system] for end in _ENDS)
                    for system in medians.get(f"peak of the client above idle, MiB: stream {way}", {})
                }
                for way in ("down", "up")
            },
        ),
    ]
    figure, axes = pyplot.subplots(3, 2, figsize=(14, 13), layout="constrained")
    for axis, (title, series) in zip(axes.flat, panels, strict=True):
        systems = list(dict.fromkeys(system for values in series.values() for system in values))
        for index, (label, values) in enumerate(series.items()):
            rows = [row + 0.4 * index for row in range(len(systems))]
            bars = axis.barh(rows, [values.get(system, 0) for system in systems], height=0.38, label=label)
            axis.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
        axis.set_yticks([row + 0.2 for row in range(len(systems))], systems)
        axis.invert_yaxis()
        axis.set_title(title)
        axis.legend()
    figure.savefig(path, dpi=110)
