"""The report of a benchmark's run: tables in Markdown, ratios first, and a plot."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Results", "write_report"]

Results = dict[str, dict[str, list[float]]]
"""Measurement -> system -> the value of each repetition."""

_OURS: Final = "rxfiles"
_NO_DIGEST: Final = "rxfiles, digest=None"
_MEMORY: Final = "rxfiles, memory"
_TLS: Final = "rxfiles, TLS"
_SYNCED: Final = "rxfiles, with fsync"
_STOCK: Final = "rsocket, read buffer 1024"
_TUTORIAL: Final = "tutorial, read buffer 1024"


class _Goal(NamedTuple):
    """The ratio of ours to a peer's value: at least `bound`, or at most."""

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
    *(_Goal(f"stream {way}, MB/s", _TLS, "asyncio streams, TLS", 1.3) for way in ("down", "up")),
    *(_Goal(f"stream {way}, MB/s", _TLS, "SSLSockets", 1.0) for way in ("down", "up")),
    *(
        _Goal(f"{count} at once {way}, MB/s", ours, f"asyncio streams{tls}", bound)
        for count in (4, 16, 64)
        for way in ("down", "up")
        for tls, bound in (("", 1.1), (", TLS", 1.3))
        for ours in (f"{_OURS}{tls}", f"{_OURS}, a client each{tls}")
    ),
    *(
        _Goal(f"line of {milliseconds} ms {way}, MB/s", ours, peer, bound)
        for milliseconds, bound in ((20, 0.8), (100, 0.6))
        for ours, peer in ((_OURS, "asyncio streams"), (_TLS, "asyncio streams, TLS"))
        for way in ("down", "up")
    ),
    *(_Goal(f"whole file {way}, MB/s", _MEMORY, _TUTORIAL, 4.0) for way in ("down", "up")),
    *(
        _Goal(f"{verb} of 4 KiB, 32 in flight, 1/s", _MEMORY, peer, bound)
        for verb in ("get", "put")
        for peer, bound in (("grpc.aio", 2.0), ("aiohttp, 1 connection", 2.5), ("aiohttp, 32 connections", 1.0))
    ),
    *(
        _Goal(f"{what}, 32 in flight, 1/s", _SYNCED, "aiohttp, 32 connections, folder", bound)
        for what, bound in (
            *(("put of 4 KiB", 1.0), ("get of 4 KiB", 2.0), ("stat of 4 KiB", 1.5), ("put of 4 KiB on a disk", 1.0)),
        )
    ),
    _Goal("small request during down, p99 ms", _OURS, _STOCK, 0.3, at_most=True),
]
_MOST: Final = {
    "beside idle clients: KiB each": 24.0,
    "beside idle clients: % of a core for 10,000": 10.0,
    "beside idle clients: small request, median ms": 5.0,
}
_ENDS: Final = ("client", "server")
_SMALL_P99: Final = "small request during {}, p99 ms"
_OURS_COLOUR: Final = "#1f6fb4"
_PEERS_COLOUR: Final = "#8a8a8a"
_WHOLE_AT_CLIENT: Final = "peak of the client above idle, MiB: whole file"
_MAX_P99_MS: Final = 10.0
_MAX_PEAK_MIB: Final = 16.0
_MAX_TLS_PEAK_MIB: Final = 16.0


class _Panel(NamedTuple):
    """A part of the plot: series (a direction or a verb) -> system -> median."""

    title: str
    series: Mapping[str, Mapping[str, float]]

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys(system for values in self.series.values() for system in values))


def write_report(results: Mapping[str, Mapping[str, list[float]]], title: str, about: str, folder: Path) -> str:
    """Writes `bench.md` and `bench.png` into the folder.

    Args:
        title: Of both; the machine and the date.
        about: How it was measured.

    Returns:
        The text of `bench.md`.
    """
    medians = {
        what: {system: statistics.median(values) for system, values in systems.items()}
        for what, systems in results.items()
    }
    lines = [f"# {title}", "", about, "", *_goals(medians), "", *_all(results, medians)]
    folder.mkdir(exist_ok=True)
    text = "\n".join(lines) + "\n"
    (folder / "bench.md").write_text(text)
    _plot(medians, title, folder / "bench.png")
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
        if (most := _MOST.get(what)) is not None:
            add(what, _OURS, "-", value, f"<= {most:.0f}", value <= most)
        elif what.endswith("p99 ms"):
            add(what, _OURS, "-", value, f"<= {_MAX_P99_MS:.0f}", value <= _MAX_P99_MS)
        # The client's whole file is left out: the caller asks for it in memory.
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
            numbers = (medians[what][system], min(values), max(values))
            lines.append(f"| {system} | " + " | ".join(map(_number, numbers)) + " |")
        lines.append("")
    return lines


def _number(value: float) -> str:
    """At least three significant digits, never an exponent, with separators."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _panels(medians: Mapping[str, Mapping[str, float]]) -> list[_Panel]:
    """The panels for which there are measurements."""

    def both_ways(what: str) -> dict[str, Mapping[str, float]]:
        return {way: medians.get(what.format(way), {}) for way in ("down", "up")}

    peaks = {end: both_ways(f"peak of the {end} above idle, MiB: stream {{}}") for end in _ENDS}
    larger = {
        way: {system: max(peaks[end][way][system] for end in _ENDS) for system in peaks["client"][way]}
        for way in ("down", "up")
    }
    requests = {verb: medians.get(f"{verb} of 4 KiB, 32 in flight, 1/s", {}) for verb in ("get", "put")}
    panels = [
        _Panel("One file, disk to disk, MB/s", both_ways("stream {}, MB/s")),
        _Panel("16 files at once, disk to disk, MB/s", both_ways("16 at once {}, MB/s")),
        _Panel("64 files at once, disk to disk, MB/s", both_ways("64 at once {}, MB/s")),
        _Panel("One file of 128 MiB, round trip of 100 ms, MB/s", both_ways("line of 100 ms {}, MB/s")),
        _Panel("One whole file, memory to memory, MB/s", both_ways("whole file {}, MB/s")),
        _Panel("Files of 4 KiB, 32 requests in flight, requests/s", requests),
        _Panel("Small request beside a large transfer, p99 in ms (less is better)", both_ways(_SMALL_P99)),
        _Panel("Peak memory of the larger end above idle, MiB (less is better)", larger),
    ]
    return [panel for panel in panels if panel.systems]


def _plot(medians: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    panels = _panels(medians)
    rows = [panels[start : start + 2] for start in range(0, len(panels), 2)]
    most = [max(len(panel.systems) for panel in row) for row in rows]
    heights = [count + 1.5 for count in most]
    size = (15, 0.45 * sum(heights) + 1)
    figure, grid = pyplot.subplots(
        len(rows), 2, figsize=size, height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis in grid.flat[len(panels) :]:
        axis.set_visible(False)
    for number, (axis, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        for index, (series, values) in enumerate(panel.series.items()):
            for row, system in enumerate(panel.systems):
                if system in values:
                    colour = _OURS_COLOUR if system.startswith(_OURS) else _PEERS_COLOUR
                    bar = axis.barh(row + 0.4 * index, values[system], height=0.38, color=colour, alpha=1 - 0.4 * index)
                    axis.bar_label(bar, [f"{_number(values[system])} {series}"], fontsize=8, padding=3)
        axis.set_yticks([row + 0.2 for row in range(len(panel.systems))], panel.systems)
        axis.set_ylim(most[number // 2] - 0.1, -0.5)  # downwards, with bars of one thickness in a row of panels
        axis.margins(x=0.25)  # for the labels behind the bars
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.set_title(panel.title, loc="left", fontsize=11)
    colours = {_OURS: _OURS_COLOUR, "other systems": _PEERS_COLOUR}
    handles = [patches.Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title, fontsize=14)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
