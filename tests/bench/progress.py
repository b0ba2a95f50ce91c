"""One status line: how far the run is, what it does, how long it will take."""

import sys
import time

BAR = 24


class Progress:
    """`total` steps of any unit; each knows its share. On a terminal a line that is written over; else nothing."""

    def __init__(self, total, out=sys.stderr):
        self.total, self.out, self.done = total, out, 0.0
        self.began, self.label, self.length = time.monotonic(), "", 0

    def begin(self, label):
        """The next step's name."""
        self.label = label
        self.status("")

    def end(self, share):
        """A step is over that was so much of the total."""
        self.done += share
        self.clear()

    def left(self):
        """Seconds to go, as text; nothing as long as nobody can tell."""
        if self.done <= 0:
            return ""
        seconds = (time.monotonic() - self.began) * (self.total - self.done) / self.done
        return ", about %d:%02d to go" % divmod(max(0, round(seconds)), 60)

    def status(self, text):
        """What goes on right now."""
        if not self.out.isatty():
            return
        full = round(BAR * min(1.0, self.done / self.total))
        line = "[%s%s] %3.0f %%%s  %s: %s" % ("#" * full, "." * (BAR - full), 100 * self.done / self.total,
                                             self.left(), self.label, text)
        line = line[:118]
        self.out.write("\r" + line.ljust(self.length))
        self.out.flush()
        self.length = len(line)

    def clear(self):
        """Takes the line away, for something else to be printed."""
        if self.length:
            self.out.write("\r" + " " * self.length + "\r")
            self.out.flush()
            self.length = 0
