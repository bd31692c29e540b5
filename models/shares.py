"""Shares of the SMs: what limits leave to tasks that run beside each other."""

from __future__ import annotations

from functools import cache
from math import inf, sqrt
from typing import NamedTuple

from splitwiser.models.kernels import saturation

NO_SM = 0.005  # of the device: less than one SM of any


class Growth(NamedTuple):
    """How a task's arithmetic and its traffic grow with its SMs, as knee and bend of `saturation`.

    *narrow*, in [0, 1], says how far one on fewer SMs than its kernels were launched for falls with
    their number instead, as if each of its blocks kept its pace.
    """

    arithmetic: tuple[float, float]
    traffic: tuple[float, float]
    narrow: float


class Meeting(NamedTuple):
    """What the shares of a task and of a neighbour say.

    The part of the neighbour's kernels on other SMs (`apart`), and on the same (`met`); the SMs that
    the task may not use and its neighbour may (`hotter`); what `Shares.escape` says of those where
    they do not meet.
    """

    apart: float
    met: float
    hotter: float
    escape: float
    costly: float


class Shares:
    """What shares are worth to tasks that grow in one way. Shares are few, and their powers costly:
    how two of them meet is kept.
    """

    def __init__(self, growth: Growth) -> None:
        self._growth = growth
        self.meeting = cache(self._find_meeting)

    def _find_meeting(self, own: float, other: float, shares: float, prompts: bool) -> Meeting:
        """Return how a task with the share *own* meets one with *other*, of *shares* in all;
        *prompts*: both compute prompts.
        """
        met = overlap(own, other, shares, prompts=prompts)
        apart = 1.0 - met
        return Meeting(apart, met, min(other, 1.0 - own), *self.escape(own, own * apart))

    def escape(self, own: float, free: float) -> tuple[float, float]:
        """Return how much longer, as a part, a task takes on its SMs that are *free*.

        First one bound by memory, then one bound by arithmetic.
        """
        if free <= NO_SM:
            return inf, inf
        arithmetic, traffic, narrow = self._growth
        fewer = (own / free) ** narrow
        slower = saturation(own, *traffic) / saturation(free, *traffic)
        costlier = saturation(own, *arithmetic) / saturation(free, *arithmetic)
        return fewer * slower ** (1.0 - narrow) - 1.0, fewer * costlier ** (1.0 - narrow) - 1.0

    def speed(self, share: float) -> float:
        """Return the speed of one SM where *share* of them work, over that where all do: power
        limits it.
        """
        return 1.0 if share >= 1.0 else saturation(share, *self._growth.arithmetic) / share


def overlap(own: float, other: float, shares: float, *, prompts: bool = False) -> float:
    """Return the part of a neighbour's kernels that meet a task's on the same SMs, in [0, 1].

    SM shares are limits, not places: of two tasks at least (own + other - 1)/own of the task's SMs
    are shared; of many tasks that together may use *shares* > 1 times the device, a task meets on
    average (shares - 1) others, by their sizes. Where both compute *prompts*, kernels of one block
    for each SM end when their last block does, however few of them waited: of two such tasks one
    meets the other as often as it is met, the geometric mean of both ways.
    """
    if shares <= 1.0:
        return 0.0
    pair = (own + other - 1.0) / (sqrt(own * other) if prompts else own)
    crowd = (shares - 1.0) * other / (shares - own)
    return min(max(pair, crowd), 1.0)  # rounding may lift a whole overlap above 1
