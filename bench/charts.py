# SPDX-License-Identifier: MIT
"""Charts as SVG without a plotting program: lines on logarithmic axes, and groups of bars."""

import math
from html import escape

# Okabe and Ito's colours, told apart with any kind of colour vision.
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d",
           "#f0e442"]
MUTED, INK, GRID = "#57606a", "#1b1f24", "#d8dee4"
LEFT, RIGHT, BOTTOM, PLOT = 78, 24, 64, 320  # margins, and the height between


class Canvas:
    """Title, subtitle and legend of a picture, at least `width` wide, and room for a plot from
    `top` to `bottom`. Entries of the legend are (name, colour, dashes); dashes None is a bar."""

    def __init__(self, width, title, subtitle, legend):
        self.width = math.ceil(max(width, LEFT + RIGHT + 10.5 * len(title),
                                   LEFT + RIGHT + 7 * len(subtitle)))
        self.parts = []
        self.text(LEFT, 32, title, size=18, colour=INK, weight=600)
        self.text(LEFT, 54, subtitle, size=13)
        x, y = LEFT, 80
        for name, colour, dashes in legend:
            length = 55 + 7.6 * len(name)
            if x > LEFT and x + length > self.width:
                x, y = LEFT, y + 22
            if dashes is None:
                self.bar(x, y - 10, 22, 12, colour, name)
            else:
                self.line([(x, y - 4), (x + 22, y - 4)], colour, 2, dashes)
            self.text(x + 29, y, name, size=13, colour=INK)
            x += length
        self.top, self.bottom = y + 32, y + 32 + PLOT
        height = self.bottom + BOTTOM
        self.parts.insert(0, (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{height}"'
            f' viewBox="0 0 {self.width} {height}" role="img" font-family="Inter, \'Segoe UI\','
            f' Roboto, Arial, sans-serif">\n<title>{escape(title)}</title>\n'
            '<rect width="100%" height="100%" fill="#ffffff"/>'))

    def text(self, x, y, content, size=12, anchor="start", colour=MUTED, weight=400, turned=False):
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
                          f' fill="{colour}" font-weight="{weight}"{turn}>{escape(content)}</text>')

    def line(self, points, colour, width=1.0, dashes=""):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"'
                          f' stroke-width="{width}" stroke-dasharray="{dashes}"/>')

    def dot(self, x, y, colour):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')

    def bar(self, x, y, width, height, colour, hint):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}"'
                          f' height="{height:.1f}" fill="{colour}">'
                          f"<title>{escape(hint)}</title></rect>")

    def finish(self):
        return "\n".join([*self.parts, "</svg>\n"])


def engineering(seconds, digits=3):
    """1.5e-5 -> "15.0 µs"."""
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor * (1 - 1e-9):
            break
    else:
        factor, unit = 1e-9, "ns"
    value = seconds / factor
    whole = len(str(int(value + 1e-9)))
    return f"{value:.{max(0, digits - whole)}f} {unit}"


def line_chart(title, subtitle, y_label, panels):
    """Panels side by side, log-log, times on the y axis. A panel is (x label, {name: points}); the
    grey line through the end of the first series is what grows in proportion to x."""
    panel_width = 480
    names = list(dict.fromkeys(name for _, series in panels for name in series))
    colours = dict(zip(names, PALETTE))
    canvas = Canvas(panel_width * len(panels), title, subtitle,
                    [*((name, colours[name], "") for name in names),
                     ("in proportion", MUTED, "2 4")])
    times = [y for _, series in panels for points in series.values() for _, y in points]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)) + 1e-9)

    def place_y(y):
        return canvas.bottom - (math.log10(y) - low) / (high - low) * PLOT

    for number, (x_label, series) in enumerate(panels):
        left, right = panel_width * number + LEFT, panel_width * (number + 1) - RIGHT
        ticks = sorted({x for points in series.values() for x, _ in points})
        span = math.log(max(ticks[-1] / ticks[0], 2))

        def place(x, y):
            return left + 12 + math.log(x / ticks[0]) / span * (right - left - 24), place_y(y)

        for power in range(low, high + 1):
            y = place_y(10.0**power)
            canvas.line([(left, y), (right, y)], GRID)
            canvas.text(left - 8, y + 4, engineering(10.0**power, 1), anchor="end")
        for x in ticks:
            canvas.text(place(x, 1)[0], canvas.bottom + 20, f"{x:g}", anchor="middle")
        canvas.text((left + right) / 2, canvas.bottom + 46, x_label, 13, "middle", INK)
        canvas.text(left - 62, canvas.top + PLOT / 2, y_label, 13, "middle", INK, turned=True)
        end_x, end_y = max(next(iter(series.values())))
        begin = max(ticks[0], end_x * 10.0**low / end_y)
        canvas.line([place(begin, end_y * begin / end_x), place(end_x, end_y)], MUTED, 1.5, "2 4")
        for name, points in series.items():
            placed = [place(x, y) for x, y in sorted(points)]
            canvas.line(placed, colours[name], 2)
            for x, y in placed:
                canvas.dot(x, y, colours[name])
    return canvas.finish()


def bar_chart(title, subtitle, y_label, groups, rule):
    """Groups are {(label, second line): {series: value}}; rule is (name, value) or None, a line
    across."""
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    colours = dict(zip(names, PALETTE))
    bar_width, gap = 14, 24
    longest = max(len(line) for label in groups for line in label)
    group_width = max(6.8 * longest, bar_width * len(names)) + gap
    canvas = Canvas(LEFT + RIGHT + group_width * len(groups), title, subtitle,
                    [*((name, colours[name], None) for name in names),
                     *([(rule[0], INK, "7 4")] if rule else [])])
    most = max([value for bars in groups.values() for value in bars.values()] +
               ([rule[1]] if rule else []))
    rough = most / 6
    power = 10.0**math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    ceiling = step * math.ceil(most / step - 1e-9)

    def place(value):
        return canvas.bottom - value / ceiling * PLOT

    right = LEFT + group_width * len(groups)
    for k in range(round(ceiling / step) + 1):
        canvas.line([(LEFT, place(k * step)), (right, place(k * step))], GRID)
        canvas.text(LEFT - 8, place(k * step) + 4, f"{k * step:g}", anchor="end")
    canvas.text(22, canvas.top + PLOT / 2, y_label, 13, "middle", INK, turned=True)
    for number, ((label, second), bars) in enumerate(groups.items()):
        middle = LEFT + group_width * (number + 0.5)
        x = middle - bar_width * len(bars) / 2
        for name in (name for name in names if name in bars):
            canvas.bar(x, place(bars[name]), bar_width - 1, place(0) - place(bars[name]),
                       colours[name], f"{label}, {second}: {name} {bars[name]:.3g}")
            x += bar_width
        canvas.text(middle, canvas.bottom + 20, label, anchor="middle", colour=INK)
        canvas.text(middle, canvas.bottom + 37, second, anchor="middle")
    if rule:
        canvas.line([(LEFT, place(rule[1])), (right, place(rule[1]))], INK, 1.5, "7 4")
    return canvas.finish()
