"""Work on many files in several processes, none of which can take the run or the other files with it."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

from ussl.notice import once

LIMIT = 120.0  # seconds after which a picture's decoder is taken to hang
CHUNK = 16  # tasks sent at once
_POLL = 1.0  # seconds between looks at workers that say nothing
_RESULT, _ALIVE, _NOTE = b"r", b"a", b"n"  # what a worker's message begins with

Alive = Callable[[], None]
Work = Callable[[Any, Alive], bytes]
Task = tuple[int, Any]  # its number and what it is


@dataclass(frozen=True)
class Lost:
    """What became of a task that has no result, in words."""

    reason: str


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(
    work: Work, tasks: Iterable[Any], workers: int, limit: float | None = None
) -> Generator[tuple[int, bytes | Lost], None, None]:
    """Number and result of every task, in the order in which `workers` processes finish them.

    `work(task, alive)` is called in a process forked from this one, so that only tasks and results are pickled. It is
    to raise nothing, and calls `alive()` between the parts of a long task: one that is silent for `limit` seconds
    (`LIMIT` when not given) is ended and Lost. One that kills its process is tried again by itself in a fresh one;
    when that dies too it is Lost, and no other task is. What workers print is dropped, except for `ussl.notice`.
    """
    pool = _Pool(work, tasks, workers, LIMIT if limit is None else limit)
    try:
        yield from pool.results()
    finally:
        pool.end()


class _Worker:
    """A process and the tasks it was sent; the first one that it has not answered is in its hand."""

    def __init__(self, work: Work, siblings: Iterable[_Worker]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, far = context.Pipe()
        ours = [self.connection, *(sibling.connection for sibling in siblings)]
        self.process = context.Process(target=_serve, args=(far, ours, work), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child ignores it
        self.process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        far.close()
        self.tasks: deque[Task] = deque()
        self.silent = 0.0  # seconds that were waited for a word from it

    def give(self, tasks: list[Task]) -> None:
        """Send tasks; that it has died in the meantime is noticed when it is listened to."""
        self.tasks.extend(tasks)
        self.silent = 0.0
        with suppress(OSError):
            self.connection.send([task for _, task in tasks])

    def end(self) -> None:
        """Kill it; one that hangs in the system itself is left behind."""
        self.process.kill()
        self.process.join(5)
        self.connection.close()


class _Pool:
    """The workers, and the tasks that none of them has."""

    def __init__(self, work: Work, tasks: Iterable[Any], workers: int, limit: float) -> None:
        self.work, self.size, self.limit = work, workers, limit
        self.tasks = enumerate(tasks)
        self.again: deque[list[Task]] = deque()  # of workers that died
        self.suspects: set[int] = set()  # tasks in whose hand a worker died
        self.workers: list[_Worker] = []

    def results(self) -> Iterator[tuple[int, bytes | Lost]]:
        """What `each` gives."""
        while True:
            self._feed()
            busy = [worker for worker in self.workers if worker.tasks]
            if not busy:
                return
            before = time.monotonic()
            ready = wait([worker.connection for worker in busy], _POLL)
            waited = time.monotonic() - before
            for worker in busy:
                worker.silent += waited
                if worker.connection in ready:
                    yield from self._listen(worker)
                elif not worker.process.is_alive() and not worker.connection.poll():  # kept open by its own children
                    yield from self._died(worker)
                elif worker.silent > self.limit:
                    yield self._hangs(worker)

    def end(self) -> None:
        """Kill all workers."""
        for worker in self.workers:
            worker.end()

    def _feed(self) -> None:
        """Give tasks to whoever has none."""
        for worker in [worker for worker in self.workers if not worker.tasks and not worker.process.is_alive()]:
            self._remove(worker)
        while (idle := next((worker for worker in self.workers if not worker.tasks), None)) or (
            len(self.workers) < self.size
        ):
            tasks = self.again.popleft() if self.again else list(islice(self.tasks, CHUNK))
            if not tasks:
                return
            (idle or self._add()).give(tasks)

    def _add(self) -> _Worker:
        self.workers.append(_Worker(self.work, self.workers))
        return self.workers[-1]

    def _remove(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.end()

    def _listen(self, worker: _Worker) -> Iterator[tuple[int, bytes | Lost]]:
        while worker.tasks and worker.connection.poll():
            try:
                message = worker.connection.recv_bytes()
            except (EOFError, OSError):  # the end, perhaps in the middle of a message
                yield from self._died(worker)
                return
            worker.silent = 0.0
            if message[:1] == _RESULT:
                yield worker.tasks.popleft()[0], message[1:]
            elif message[:1] == _NOTE:
                once(message[1:].decode())

    def _died(self, worker: _Worker) -> Iterator[tuple[int, Lost]]:
        """Suspect the task in hand: tried by itself in a fresh process, unless it has been before."""
        worker.process.join(5)
        task = self._take_back(worker)
        if task[0] in self.suspects:
            yield task[0], Lost(_cause(worker.process.exitcode))
        else:
            self.suspects.add(task[0])
            self._add().give([task])

    def _hangs(self, worker: _Worker) -> tuple[int, Lost]:
        return self._take_back(worker)[0], Lost(f"took longer than {self.limit:g} s")

    def _take_back(self, worker: _Worker) -> Task:
        """The task in the worker's hand; the others it was sent wait for another one."""
        first, *others = worker.tasks
        if others:
            self.again.append(others)
        self._remove(worker)
        return first


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return f"the decoder crashed (signal {-code}{memory})"
    return f"the decoder ended its process (exit code {code})"


def _serve(far: Connection, ours: list[Connection], work: Work) -> None:
    """A worker's life: it ends with the connection, so also when the main process is killed."""
    for connection in ours:  # inherited: held open here they would never end
        connection.close()
    said = time.monotonic()

    def send(message: bytes) -> None:
        nonlocal said
        said = time.monotonic()
        far.send_bytes(message)

    def alive() -> None:
        if time.monotonic() - said > _POLL:
            send(_ALIVE)

    _settle(lambda text: send(_NOTE + text.encode()))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            for task in far.recv():
                send(_RESULT + work(task, alive))


def _settle(note: Callable[[str], None]) -> None:
    """One thread, no Ctrl-C (the main process ends it), nothing on the terminal but notes.

    Decoders print what they find in a file: next to a progress bar, and with what should stay in the file.
    """
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.environ.get("USSL_TRACEBACK") != "1":
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
    sys.stdout, sys.stderr = io.StringIO(), _Notes(note)


class _Notes(io.TextIOBase):
    """Standard error of a worker, of which the lines that begin with `note` reach the main process."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note, self.line = note, ""

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, text: str) -> int:
        """Keep the text up to the end of its line."""
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "note" and rest.strip():
                self.note(rest.strip())
        return len(text)
