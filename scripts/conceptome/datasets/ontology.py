"""Ontologies in OBO format: terms, their names, and which is a kind or a part of which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conceptome.errors import DataError

if TYPE_CHECKING:
    import networkx as nx

IDENTIFIER = re.compile(r"\b([A-Z]+:\d{5,})\b")
RELATIONS = ("is_a", "part_of")
_PARENT = re.compile(r"^(?:(is_a):|relationship: (part_of)) (\S+)")
_SYNONYM = re.compile(r'^synonym: "(.*)" EXACT\b')


def read_ontology(path: str | Path, relations: Sequence[str] = RELATIONS) -> nx.DiGraph:
    """Read the terms of an OBO file and their parents; obsolete terms are left out.

    Parameters
    ----------
    relations
        Which relations make a parent: `is_a`, `part_of` or both.

    Returns
    -------
    networkx.DiGraph
        Edges from child to parent. Terms of the file carry `name` and `also` (exact synonyms and alternative
        identifiers); a parent that the file does not define carries neither.

    Raises
    ------
    DataError
        The file is no text, or holds no term with a parent.

    References
    ----------
    OBO flat file format 1.4 (owlcollab.github.io/oboformat).
    """
    import networkx as nx

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not a text file: give an ontology in OBO format") from None
    except FileNotFoundError:
        raise DataError(f"there is no ontology {path}: correct the path in the configuration") from None
    graph = nx.DiGraph()
    for stanza in text.split("\n["):
        lines = [line.rstrip() for line in stanza.splitlines()]
        if not lines or lines[0].strip(" []") != "Term" or "is_obsolete: true" in lines:
            continue
        identifier = next((line[4:].strip() for line in lines if line.startswith("id: ")), None)
        if not identifier:
            continue
        name = next((line[6:].strip() for line in lines if line.startswith("name: ")), "")
        synonyms = [found.group(1) for found in map(_SYNONYM.match, lines) if found]
        alternatives = [line[8:].strip() for line in lines if line.startswith("alt_id: ")]
        graph.add_node(identifier, name=name, also=(*synonyms, *alternatives))
        for found in map(_PARENT.match, lines):
            if found and (found.group(1) or found.group(2)) in relations:
                graph.add_edge(identifier, found.group(3))
    if not graph.number_of_edges():
        raise DataError(f"{path.name} holds no term with a parent: give an ontology in OBO format")
    return graph


def find_terms(graph: nx.DiGraph, classes: Iterable[str], named: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Find the term of each class.

    A class is a term by what `named` says, by an identifier in its text (CL:0000624), or by its name or an exact
    synonym, letter case aside.

    Returns
    -------
    terms, unknown
        Class → identifier, and the classes that no term was found for.

    Raises
    ------
    DataError
        `named` gives a class that is not there, or an identifier that the ontology lacks.
    """
    classes = list(classes)
    known: dict[str, str] = {}
    # A name comes before a synonym of another term.
    for place in ("name", "also"):
        for identifier, data in graph.nodes(data=True):
            texts = [data.get("name", "")] if place == "name" else data.get("also", ())
            for text in texts:
                known.setdefault(text.lower(), identifier)
    for name, identifier in named.items():
        if name not in classes:
            raise DataError(f"terms names class '{name}', which the label does not have: correct the name")
        if identifier not in graph:
            raise DataError(f"terms gives class '{name}' the term {identifier}, which the ontology lacks: correct it")
    terms, unknown = {}, []
    for name in classes:
        written = IDENTIFIER.search(name)
        found = named.get(name) or (written.group(1) if written and written.group(1) in graph else None)
        found = found or known.get((written.group(1) if written else name).lower())
        if found:
            terms[name] = found
        else:
            unknown.append(name)
    return terms, unknown


def families(graph: nx.DiGraph, terms: Mapping[str, str]) -> dict[str, tuple[list[str], list[str]]]:
    """Terms above at least two classes, each with the classes below it.

    Of terms above the same classes only the lowest is given (the others say no more), and none above all.

    Parameters
    ----------
    terms
        Class → identifier, from `find_terms`.

    Returns
    -------
    dict
        "name (identifier)" → (members, children): all classes that are the term or below it, and those below it. In
        order of the number of members, largest first.
    """
    import networkx as nx

    above = {name: nx.descendants(graph, identifier) for name, identifier in terms.items()}
    found: dict[tuple, str] = {}
    # Of two terms one above the other the lower one has more terms above itself.
    candidates = set().union(*above.values()) if above else set()
    for identifier in sorted(candidates, key=lambda each: (-len(nx.descendants(graph, each)), each)):
        children = tuple(sorted(name for name in terms if identifier in above[name]))
        members = tuple(sorted({*children, *(name for name, own in terms.items() if own == identifier)}))
        if len(children) > 1 and len(members) < len(terms):
            found.setdefault(members, identifier)
    ordered = sorted(found.items(), key=lambda item: (-len(item[0]), item[0]))
    return {
        f"{graph.nodes[identifier].get('name') or identifier} ({identifier})": (
            list(members),
            [name for name in members if identifier in above[name]],
        )
        for members, identifier in ordered
    }
