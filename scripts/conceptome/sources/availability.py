"""Which sources are reachable, without retrieving them; and the choice that a first run makes by it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conceptome.errors import SourceError
from conceptome.sources.entries import MIRROR_VARIABLE, Package, SourceEntry
from conceptome.sources.retrieval import difference, installed_member, pip_complaint
from conceptome.sources.transfer import HEADERS, http_address

DEADLINE_S = 5.0
CONNECT_S = 3.0


@dataclass(frozen=True)
class Status:
    """Whether a source is reachable: where it was found, or why it was not."""

    name: str
    reachable: bool
    where: str
    wrong: bool = False

    def __str__(self) -> str:
        return f"{'ok     ' if self.reachable else 'WRONG  ' if self.wrong else 'missing'} {self.name}: {self.where}"


def availability(
    entries: Iterable[SourceEntry], mirrors: Sequence[Path], *, network: bool = True, deadline: float = DEADLINE_S
) -> dict[str, Status]:
    """Tell which sources are reachable. Mirrored files are hashed; public addresses and packages are only asked for.

    Parameters
    ----------
    entries
        The sources in question.
    mirrors
        Mirror folders, searched first.
    network
        Whether public addresses and package registries may be asked.
    deadline
        Seconds after which a place that has not answered counts as unreachable; all are asked at once.

    Returns
    -------
    dict
        Source name → Status, in the order of `entries`. `wrong`: a mirror holds another file under that name.
    """
    entries = list(entries)
    found: dict[str, Status] = {}
    questions: dict[str, Callable[[float], str | None]] = {}
    for entry in entries:
        status = _in_mirrors(entry, mirrors) or _installed(entry)
        if status is not None:
            found[entry.name] = status
        elif network:
            questions.update(_questions(entry))
    answers = _ask_all(questions, deadline)
    for entry in entries:
        if entry.name not in found:
            found[entry.name] = _judge(entry, mirrors, answers, network)
    return {entry.name: found[entry.name] for entry in entries}


def check(entries: Iterable[SourceEntry], mirrors: Sequence[Path], *, network: bool = True) -> list[Status]:
    """List the status of every source: what `conceptome sources check` prints, one line each."""
    return list(availability(entries, mirrors, network=network).values())


def first_run_choice(
    entries_needed: Iterable[SourceEntry], mirrors: Sequence[Path], *, network: bool = True
) -> Literal["default", "offline"]:
    """Choose the configuration of a first run by what is reachable outside packages.

    Parameters
    ----------
    entries_needed
        The sources that the default configuration reads. Those that a package carries have no say: the offline
        configuration needs packages too.

    Returns
    -------
    str
        'default' if every file outside packages is reachable, 'offline' if none is.

    Raises
    ------
    SourceError
        Some are reachable and some are not, or a mirror holds a wrong file: names the files and how to supply them.
    """
    outside = {entry.name: entry for entry in entries_needed if not entry.carried()}
    statuses = availability(outside.values(), mirrors, network=network)
    wrong = [status for status in statuses.values() if status.wrong]
    if wrong:
        raise SourceError(
            f"wrong files in a mirror: {'; '.join(f'{item.name}: {item.where}' for item in wrong)}; replace or remove "
            f"them, or take that folder out of {MIRROR_VARIABLE}"
        )
    missing = [status for status in statuses.values() if not status.reachable]
    if not missing:
        return "default"
    if len(missing) == len(statuses):
        return "offline"
    raise SourceError(
        f"{len(missing)} of {len(statuses)} source files cannot be reached: "
        f"{'; '.join(f'{item.name} ({item.where})' for item in missing)}; put them into a folder and name that folder "
        f"in {MIRROR_VARIABLE} (config/sources.yaml has their addresses and sha256), or run config/offline.yaml"
    )


def _in_mirrors(entry: SourceEntry, mirrors: Sequence[Path]) -> Status | None:
    """Status by the mirrors alone; None if they do not hold every file of the entry."""
    places = []
    for name, content in entry.contents().items():
        for folder in mirrors:
            path = entry.mirror_path(folder, name, content)
            if path.is_file():
                problem = difference(path, content)
                if problem:
                    return Status(entry.name, False, f"{path} is {problem}", wrong=True)
                places.append(str(folder))
                break
        else:
            return None
    return Status(entry.name, True, "mirror " + ", ".join(dict.fromkeys(places)))


def _installed(entry: SourceEntry) -> Status | None:
    """Status by the environment alone; None if exactly this version is not installed with all members intact."""
    for content in entry.contents().values():
        if content.member is None:
            return None
        path = installed_member(entry.package, content.member)
        if path is None or difference(path, content):
            return None
    return Status(entry.name, True, f"{entry.package}, installed here")


def _questions(entry: SourceEntry) -> dict[str, Callable[[float], str | None]]:
    """What to ask of the network for an entry: place → function that returns None (yes) or the reason of a no."""
    questions: dict[str, Callable[[float], str | None]] = {}
    for content in entry.contents().values():
        if content.url is not None:
            questions[content.url] = _head(content.url, content.size)
        if content.member is not None:
            questions[_registry(entry.package)] = _in_registry(entry.package)
    return questions


def _head(url: str, size: int) -> Callable[[float], str | None]:
    def ask(deadline: float) -> str | None:
        import requests

        try:
            answer = requests.head(
                http_address(url), timeout=min(CONNECT_S, deadline), allow_redirects=True, headers=HEADERS
            )
        except requests.RequestException:
            return "no connection"
        # A server may not know HEAD (405, 501) and still have the file.
        if answer.status_code >= 400 and answer.status_code not in (405, 501):
            return f"HTTP {answer.status_code}"
        length = answer.headers.get("Content-Length", "")
        if answer.ok and length.isdigit() and "Content-Encoding" not in answer.headers and int(length) != size:
            return f"another file ({int(length):,} bytes, expected {size:,})"
        return None

    return ask


def _registry(package: Package) -> str:
    return f"{package}, downloaded with pip"


def _in_registry(package: Package) -> Callable[[float], str | None]:
    def ask(deadline: float) -> str | None:
        command = [
            *(sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", "--no-input", "--pre"),
            *("--timeout", str(CONNECT_S), "--retries", "0", package.name),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=deadline, check=False
            )
        except subprocess.TimeoutExpired:
            return "no answer from the package registry"
        if done.returncode:
            return pip_complaint(done.stderr)
        listed = done.stdout.replace(",", " ").replace("(", " ").replace(")", " ").split()
        return None if package.version in listed else f"the package registry has no version {package.version}"

    return ask


def _ask_all(questions: dict[str, Callable[[float], str | None]], deadline: float) -> dict[str, str | None]:
    """Ask everything at once and give what has been answered by the deadline.

    Daemon threads, because looking up a host name has no timeout of its own: a lookup that hangs must hold up
    neither the answer nor the end of the program.
    """
    answers: dict[str, str | None] = {}

    def ask_one(place: str, ask: Callable[[float], str | None]) -> None:
        answers[place] = ask(deadline)

    threads = [threading.Thread(target=ask_one, args=item, daemon=True) for item in questions.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + deadline
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return dict(answers)


def _judge(entry: SourceEntry, mirrors: Sequence[Path], answers: dict[str, str | None], network: bool) -> Status:
    """Put the answers together: every file of the entry needs one place that has it."""
    places: list[str] = []
    reasons = ["not in " + ", ".join(map(str, mirrors)) if mirrors else "no mirror folder"]
    complete = True
    for content in entry.contents().values():
        candidates = [content.url] if content.url is not None else []
        candidates += [_registry(entry.package)] if content.member is not None else []
        silence = "no answer in time" if network else "no network allowed"
        problems = {place: answers.get(place, silence) for place in candidates}
        good = [place for place, problem in problems.items() if problem is None]
        if good:
            places.append(good[0])
        else:
            complete = False
            reasons.extend(f"{place}: {problem}" for place, problem in problems.items())
    if not complete and entry.by_hand is not None:
        reasons.append(f"to be made by hand: {entry.by_hand}")
    return Status(entry.name, complete, "; ".join(dict.fromkeys(places if complete else reasons)))
