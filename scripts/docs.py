#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Checks the documents against the tree: links resolve, and each drop reason and cause is described."""
import pathlib
import re
import sys


def main():
    documents = {path: path.read_text() for folder in (".", "docs") for path in sorted(pathlib.Path(folder).glob("*.md"))}
    faults = [fault for path in documents for fault in broken_links(path, documents)]
    for source in ("src/stats.rs", "bridge/src/drop_reason.rs"):
        faults += missing("docs/troubleshooting.md", "drop reason", source, r'= "([a-z0-9-]+)",')
    faults += missing("docs/troubleshooting.md", "cause", "src/proto/trouble.rs", r'=> "([a-z0-9-]+)",')
    print("\n".join(faults) or f"{len(documents)} documents are true to the tree")
    sys.exit(bool(faults))


def missing(document, what, source, pattern):
    names = re.findall(pattern, pathlib.Path(source).read_text()) or sys.exit(f"{source}: no {what} found by scripts/docs.py")
    described = set(re.findall(r"`([a-z0-9-]+)`", pathlib.Path(document).read_text()))
    return [f"{document}: the {what} `{name}` is missing" for name in names if name not in described]


def broken_links(path, documents):
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(documents[path]))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve().relative_to(pathlib.Path.cwd()) if file else path
        if not target.exists():
            yield f"{path}: {link} leads to no file"
        elif anchor and anchor not in anchors(documents.get(target, "")):
            yield f"{path}: {link} leads to no heading"


def anchors(text):
    headings = re.findall(r"^#+ (.*)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose(text):
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)


main()
