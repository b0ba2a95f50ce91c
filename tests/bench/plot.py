"""SVG plots, written by hand: grouped bars with whiskers, and lines."""

import math
from xml.sax.saxutils import escape

COLOURS = ("#8a8f98", "#4f83cc", "#d9622b", "#3f9b6c", "#9467bd")
WIDTH, HEIGHT = 960, 460
LEFT, RIGHT, TOP, BOTTOM = 80, 20, 76, 70
FONT = 'font-family="Helvetica, Arial, sans-serif"'


def text(x, y, words, size=12, anchor="middle", colour="#333", turn=None):
    """One line of text."""
    turned = ' transform="rotate(%d %.1f %.1f)"' % (turn, x, y) if turn else ""
    return '<text x="%.1f" y="%.1f" %s font-size="%d" text-anchor="%s" fill="%s"%s>%s</text>' % (
        x, y, FONT, size, anchor, colour, turned, escape(words))


def line(x1, y1, x2, y2, colour="#ddd", width=1.0):
    return '<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"/>' % (
        x1, y1, x2, y2, colour, width)


def short(value):
    """1550000 as 1.55M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return "%.3g%s" % (value / limit, unit)
    return "%.3g" % value


class Axis:
    """Values to positions, with round ticks; `log` needs values above 0."""

    def __init__(self, low, high, start, end, log=False):
        self.log, self.start, self.end = log, start, end
        if log:
            self.low, self.high = math.floor(math.log10(low)), math.ceil(math.log10(high))
            self.high = max(self.high, self.low + 1)
            self.ticks = [10.0 ** power for power in range(self.low, self.high + 1)]
        else:
            step = 10 ** math.floor(math.log10(max(high, 1e-9) / 2))
            step = next(step * factor for factor in (1, 2, 5, 10) if high / (step * factor) <= 6)
            self.low, self.high = 0.0, step * math.ceil(high / step)
            self.ticks = [step * i for i in range(round(self.high / step) + 1)]

    def at(self, value):
        """Where a value is; what is off the scale is at its end."""
        value = math.log10(max(value, 1e-12)) if self.log else value
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def frame(title, subtitle, series, y_axis, y_label, y_format):
    """Title, legend, horizontal grid."""
    parts = [text(LEFT, 24, title, 16, "start", "#111"), text(LEFT, 43, subtitle, 12, "start", "#666")]
    x = LEFT
    for number, name in enumerate(series):
        parts.append('<rect x="%.1f" y="54" width="11" height="11" fill="%s"/>' % (x, COLOURS[number % len(COLOURS)]))
        parts.append(text(x + 16, 64, name, 12, "start"))
        x += 36 + 7 * len(name)
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        parts += [line(LEFT, y, WIDTH - RIGHT, y), text(LEFT - 6, y + 4, y_format(tick), 11, "end", "#666")]
    parts.append(text(18, (TOP + HEIGHT - BOTTOM) / 2, y_label, 12, turn=-90))
    return parts


def document(parts):
    """The whole file."""
    return ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">\n'
            '<rect width="100%%" height="100%%" fill="white"/>\n%s\n</svg>\n' %
            (WIDTH, HEIGHT, WIDTH, HEIGHT, "\n".join(parts)))


def bars(title, subtitle, groups, series, values, y_label, y_format=short, log=False):
    """Grouped bars. `values[group][name]` is (value, low, high, words above the bar), or is not there."""
    found = [entry for group in groups for entry in values.get(group, {}).values()]
    low = min((entry[1] for entry in found), default=1) or 1
    axis = Axis(low, max((entry[2] for entry in found), default=1) * (1 if log else 1.05), HEIGHT - BOTTOM, TOP, log)
    parts = frame(title, subtitle, series, axis, y_label, y_format)
    room = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    wide = min(60.0, room * 0.82 / len(series))
    for place, group in enumerate(groups):
        middle = LEFT + room * (place + 0.5)
        parts += [text(middle, HEIGHT - BOTTOM + 20 + 15 * row, words) for row, words in enumerate(group.split("\n"))]
        for number, name in enumerate(series):
            entry = values.get(group, {}).get(name)
            x = middle + (number - len(series) / 2) * wide
            if entry is None:
                parts.append(text(x + wide / 2, HEIGHT - BOTTOM - 4, "–", 11))
                continue
            value, lowest, highest, words = entry
            top = axis.at(value)
            parts.append('<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"><title>%s</title></rect>' % (
                x + 1, top, wide - 2, max(0.5, HEIGHT - BOTTOM - top), COLOURS[number % len(COLOURS)],
                escape("%s, %s: %s" % (group.replace("\n", ", "), name, words))))
            centre = x + wide / 2
            if lowest < highest:
                parts += [line(centre, axis.at(lowest), centre, axis.at(highest), "#222", 1.2),
                          line(centre - 4, axis.at(lowest), centre + 4, axis.at(lowest), "#222", 1.2),
                          line(centre - 4, axis.at(highest), centre + 4, axis.at(highest), "#222", 1.2)]
            parts.append(text(centre, axis.at(highest) - 5, words, 10))
    parts.append(line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#333"))
    return document(parts)


def lines(title, subtitle, series, points, x_label, y_label, x_format=short, y_format=short):
    """Lines over a logarithmic x axis. `points[name]` is a list of (x, y, low, high)."""
    every = [point for name in series for point in points.get(name, ())]
    axis = Axis(1, max((point[3] for point in every), default=1) * 1.05, HEIGHT - BOTTOM, TOP)
    places = sorted({point[0] for point in every})
    parts = frame(title, subtitle, series, axis, y_label, y_format)
    least, most = math.log(places[0]) if places else 0, math.log(places[-1]) if places else 1

    def across(x):
        share = (math.log(x) - least) / (most - least) if most > least else 0.5
        return LEFT + 30 + share * (WIDTH - LEFT - RIGHT - 60)

    for x in places:
        parts += [line(across(x), TOP, across(x), HEIGHT - BOTTOM, "#eee"),
                  text(across(x), HEIGHT - BOTTOM + 20, x_format(x), 12)]
    for number, name in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        drawn = sorted(points.get(name, ()))
        path = " ".join("%.1f,%.1f" % (across(x), axis.at(y)) for x, y, _, _ in drawn)
        parts.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>' % (path, colour))
        for x, y, low, high in drawn:
            parts += [line(across(x), axis.at(low), across(x), axis.at(high), colour, 1.2),
                      '<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>' % (across(x), axis.at(y), colour),
                      text(across(x), axis.at(high) - 8, y_format(y), 10, colour=colour)]
    parts += [line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#333"),
              text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 44, x_label, 12)]
    return document(parts)
