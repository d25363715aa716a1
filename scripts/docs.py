#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Holds the documents against the tree: links lead somewhere, and each key, drop reason and cause is described."""
import pathlib
import re
import sys


def main():
    documents = {path: path.read_text() for folder in (".", "docs") for path in sorted(pathlib.Path(folder).glob("*.md"))}
    faults = [fault for path in documents for fault in broken_links(path, documents)]
    faults += missing("docs/configuration.md", "key", keys(), r"^\| `([a-z0-9-]+)` \|")
    faults += missing("docs/troubleshooting.md", "drop reason", found("src/stats.rs", r'= "([a-z0-9-]+)",'))
    faults += missing("docs/troubleshooting.md", "cause", found("src/proto/trouble.rs", r'=> "([a-z0-9-]+)",'))
    print("\n".join(faults) or f"{len(documents)} documents are true to the tree")
    sys.exit(bool(faults))


def keys():
    """Those of every list of keys: `&["name", "nic"]`."""
    schema = pathlib.Path("src/config/section.rs").read_text()
    return names(r'"([a-z0-9-]+)"', "".join(re.findall(r"&\[(.*?)\]", schema, re.S)), "src/config/section.rs")


def found(source, pattern):
    return names(pattern, pathlib.Path(source).read_text(), source)


def names(pattern, text, source):
    return set(re.findall(pattern, text)) or sys.exit(f"{source} looks otherwise than scripts/docs.py believes")


def missing(document, what, names, pattern=r"`([a-z0-9-]+)`"):
    described = set(re.findall(pattern, pathlib.Path(document).read_text(), re.M))
    return [f"{document}: the {what} `{name}` is missing" for name in sorted(names - described)]


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
