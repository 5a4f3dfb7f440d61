"""Sokoban without pictures: the rules, a generator of solvable levels, and a planner that is push-optimal.

A set of cells is one integer with a bit per cell (row by row, bit 0 at the top left), so all its cells move to
one side in one shift. The outermost cells are always walls: nothing that matters is shifted over an edge.

The generator carves a room with a random walk, puts the boxes on the targets and plays in reverse, pulling
instead of pushing (Racanière et al. 2017, appendix; so do Guez et al. 2019 and gym-sokoban). The planner is A*
(Hart et al. 1968) over pushes: a position is the boxes and the region in which the player can walk.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from gatito.data.tasks import ExpertFailed
from gatito.errors import UserError

GENERATOR_NODES = 1000
"""Positions that A* may expand for a new level; harder ones are rejected, so that planning stays fast."""

PLANNER_NODES = 10_000
"""Positions that A* may expand for the expert, whom noise leads to positions that the generator never saw."""

_ATTEMPTS = 1000
_PULLS = 20
"""Pulls per box while playing in reverse."""
_FAR = 1000
"""More pushes than any level needs."""


class State(NamedTuple):
    """What moves in a room."""

    boxes: int
    """Cells with a box."""
    player: int
    """The player's cell, a single bit."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What stands still in a level."""

    size: int
    """Cells a side, outer walls included."""
    floor: int
    """Cells that are no wall."""
    targets: int
    """Cells on which the boxes shall stand."""

    @cached_property
    def offsets(self) -> tuple[int, int, int, int]:
        """Cells from a cell to its neighbour up, down, left and right, in the order of the actions."""
        return -self.size, self.size, -1, 1

    @cached_property
    def pushes(self) -> dict[int, tuple[tuple[int, int], ...]]:
        """For each cell, the targets that a lone box reaches from there and its fewest pushes to each.

        Cells that are no key are dead: no target is reached.
        """
        tables = {target: self._pushes_to(target) for target in cells(self.targets)}
        rows = {
            cell: tuple((t, table[cell]) for t, table in tables.items() if cell in table)
            for cell in cells(self.floor)
        }
        return {cell: row for cell, row in rows.items() if row}

    @cached_property
    def alive(self) -> int:
        """Cells from which a box can be pushed to a target."""
        return sum(self.pushes)

    def _pushes_to(self, target: int) -> dict[int, int]:
        """Breadth first in reverse: where a box on the target can be pulled."""
        pushes, frontier, seen = {target: 0}, target, target
        while frontier:
            pulled = 0
            for offset in self.offsets:
                pulled |= shift(frontier, offset) & self.floor & shift(self.floor, -offset)
            distance = pushes[frontier & -frontier] + 1
            frontier = pulled & ~seen
            seen |= frontier
            pushes |= dict.fromkeys(cells(frontier), distance)
        return pushes


def shift(bits: int, offset: int) -> int:
    """Move every cell of a set by `offset` cells."""
    return bits << offset if offset > 0 else bits >> -offset


def cells(bits: int) -> Iterator[int]:
    """Yield the cells of a set, each as a set of its own, in reading order."""
    while bits:
        yield bits & -bits
        bits &= bits - 1


def moved(room: Room, state: State, action: int) -> State:
    """The rules: the player steps, pushes one box if it can move on, or stays where it is.

    Actions are 0 up, 1 down, 2 left and 3 right.
    """
    offset = room.offsets[action]
    ahead = shift(state.player, offset)
    if not ahead & state.boxes:
        return State(state.boxes, ahead) if ahead & room.floor else state
    behind = shift(ahead, offset)
    if behind & room.floor & ~state.boxes:
        return State(state.boxes ^ ahead | behind, ahead)
    return state


def reachable(room: Room, state: State) -> int:
    """Cells to which the player can walk without a push, its own included."""
    free, region, before = room.floor & ~state.boxes, state.player, 0
    up, left = room.size, 1
    while region != before:
        before = region
        region |= (region << up | region >> up | region << left | region >> left) & free
    return region


def least_pushes(room: Room, boxes: int) -> int | None:
    """A lower bound of the pushes that are left, or None where a box is dead.

    Each box gets a target of its own so that the sum is least, as if no box stood in another's way. The bound
    is consistent: one push changes one box's row by at most 1.
    """
    if boxes & ~room.alive or _stuck(room, boxes):
        return None
    sums = {0: 0}  # by the set of the targets that are taken
    for box in cells(boxes):
        longer: dict[int, int] = {}
        for target, distance in room.pushes[box]:
            for taken, total in sums.items():
                if not taken & target and total + distance < longer.get(taken | target, _FAR):
                    longer[taken | target] = total + distance
        sums = longer
    return min(sums.values(), default=None)


def _stuck(room: Room, boxes: int) -> bool:
    """Whether a square of 2 x 2 walls and boxes holds a box that is on no target: none of them moves again."""
    solid = ~room.floor | boxes
    pairs = solid & solid >> 1
    corners = pairs & pairs >> room.size  # the top left ones
    rows = corners | corners << 1
    return bool((rows | rows << room.size) & boxes & ~room.targets)


def plan(room: Room, state: State, max_nodes: int = PLANNER_NODES) -> dict[State, int]:
    """Return the way to the solution with the fewest pushes: each state and the action to take there, in order.

    The walk to each push is a shortest one. Raises `ExpertFailed` where nothing solves the level, or where
    nothing was found in `max_nodes` expanded positions.
    """
    way: dict[State, int] = {}
    for start, push in _search(room, state, max_nodes):
        for action in (*_walk(room, state, start), push):
            way[state] = action
            state = moved(room, state, action)
    return way


def _search(room: Room, state: State, max_nodes: int) -> list[tuple[int, int]]:
    """A*: the pushes of a shortest solution, each as the player's cell before it and its action."""
    bound, ties = least_pushes(room, state.boxes), count()
    closed: set[tuple[int, int]] = set()
    bounds = {state.boxes: bound}
    queue: list[tuple[int, int, int, State, Any]] = []
    if bound is not None:
        queue.append((bound, bound, next(ties), state, None))
    while queue:
        total, bound, _, state, path = heapq.heappop(queue)
        if state.boxes == room.targets:
            return _unrolled(path)
        region = reachable(room, state)
        if (state.boxes, region) in closed:
            continue
        if len(closed) == max_nodes:
            raise ExpertFailed(f"no solution found in {max_nodes} expanded positions")
        closed.add((state.boxes, region))
        open_cells = room.alive & ~state.boxes
        for action, offset in enumerate(room.offsets):
            for box in cells(state.boxes & shift(region, offset) & shift(open_cells, -offset)):
                boxes = state.boxes ^ box | shift(box, offset)
                if boxes not in bounds:
                    bounds[boxes] = least_pushes(room, boxes)
                after = bounds[boxes]
                if after is not None:
                    cost = total - bound + 1 + after
                    link = (shift(box, -offset), action, path)
                    heapq.heappush(queue, (cost, after, next(ties), State(boxes, box), link))
    raise ExpertFailed("no sequence of pushes solves this position; a box was pushed where it cannot come back")


def _unrolled(path: Any) -> list[tuple[int, int]]:
    """Turn a linked list (cell, action, the rest), last push first, into a list, first push first."""
    pushes = []
    while path is not None:
        cell, action, path = path
        pushes.append((cell, action))
    return pushes[::-1]


def _walk(room: Room, state: State, goal: int) -> list[int]:
    """Return the actions of a shortest walk to the cell `goal`, which is reachable."""
    free, layers = room.floor & ~state.boxes, [state.player]
    seen = state.player
    while not layers[-1] & goal:
        layer = 0
        for offset in room.offsets:
            layer |= shift(layers[-1], offset)
        layers.append(layer & free & ~seen)
        seen |= layers[-1]
    actions: list[int] = []
    for layer in layers[-2::-1]:
        action = next(a for a, offset in enumerate(room.offsets) if shift(goal, -offset) & layer)
        goal = shift(goal, -room.offsets[action])
        actions.append(action)
    return actions[::-1]


def generate(size: int, boxes: int, max_moves: int, rng: np.random.Generator) -> tuple[Room, State]:
    """Return a level that the planner solves in `max_moves` or fewer, and with `size * boxes / 2` pushes or more.

    Raises `UserError` where rooms of this size hold no such level.
    """
    for _ in range(_ATTEMPTS):
        floor = _carved(size, rng)
        if floor.bit_count() < 3 * boxes:
            continue
        room = Room(size=size, floor=floor, targets=_sample(floor, boxes, rng))
        state, pushes = _played_in_reverse(room, rng)
        if 2 * pushes < size * boxes:
            continue
        try:
            if len(plan(room, state, GENERATOR_NODES)) <= max_moves:
                return room, state
        except ExpertFailed:  # there is a solution, but it is hard to find
            continue
    raise UserError(f"found no level of size {size} with {boxes} boxes; fewer boxes or a larger size have some")


def _sample(bits: int, number: int, rng: np.random.Generator) -> int:
    """Return a random subset of `number` cells."""
    every = list(cells(bits))
    return sum(every[i] for i in rng.choice(len(every), number, replace=False))


def _carved(size: int, rng: np.random.Generator) -> int:
    """Return the floor that a random walk clears, with cells beside it: a half to three quarters of the inside."""
    inside = sum((1 << size - 2) - 1 << row * size + 1 for row in range(1, size - 1))
    offsets, share = (-size, size, -1, 1), rng.uniform(0.5, 0.75)
    here, offset, floor = _sample(inside, 1, rng), 1, 0
    while floor.bit_count() < share * inside.bit_count():
        ahead = shift(here, offset) & inside
        if not ahead or rng.random() < 0.35:
            offset = offsets[rng.integers(4)]
        here = ahead or here
        floor |= (here | shift(here, offsets[rng.integers(4)])) & inside
    return floor


def _played_in_reverse(room: Room, rng: np.random.Generator) -> tuple[State, int]:
    """Pull boxes away from the targets; return the position that is farthest from solved, and its `least_pushes`.

    Each pull is the best of three at random: one alone seldom leads far away, the best of all often to dead ends.
    """
    state = best = State(room.targets, _sample(room.floor & ~room.targets, 1, rng))
    most = 0
    for _ in range(_PULLS * room.targets.bit_count()):
        region, free = reachable(room, state), room.floor & ~state.boxes
        pulls = [
            State(state.boxes ^ box | shift(box, offset), shift(box, 2 * offset))
            for offset in room.offsets
            for box in cells(state.boxes & shift(region, -offset) & shift(free, -2 * offset))
        ]
        if not pulls:
            break
        tried = [pulls[i] for i in rng.integers(len(pulls), size=3)]
        pushes, state = max(((least_pushes(room, pulled.boxes) or 0, pulled) for pulled in tried), key=itemgetter(0))
        if pushes > most:
            best, most = state, pushes
    return State(best.boxes, _sample(reachable(room, best), 1, rng)), most
