"""The documentation: every relative link leads to a file, and every anchor to a heading of it."""

import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# [text](target) and ![text](target); a title behind the target would be read as a part of it.
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.*?) *#*$")
FENCE = re.compile(r"^\s*(```|~~~)")


def pages():
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if name != "target" and not name.startswith("."))
        yield from (pathlib.Path(folder, name) for name in sorted(files) if name.endswith(".md"))


def prose(page):
    """Its lines, without blocks of code."""
    code = False
    for line in page.read_text().splitlines():
        if FENCE.match(line):
            code = not code
        elif not code:
            yield line


def anchors(page):
    """Of its headings, as GitHub makes them: the second of a name gets -1."""
    seen = {}
    for line in prose(page):
        if heading := HEADING.match(line):
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            count = seen[name] = seen.get(name, -1) + 1
            yield name if count == 0 else f"{name}-{count}"


def broken(page):
    """The links of a page that lead nowhere."""
    for line in prose(page):
        for link in LINK.findall(re.sub(r"`[^`]*`", "", line)):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                yield link


@pytest.mark.parametrize("page", list(pages()), ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    assert list(broken(page)) == []


def test_every_page_is_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in readme] == []


def test_broken_links_are_found(tmp_path):
    good = ["[a](#one)", "[b](other.md)", "![c](other.md#two-words-1)", "[d](https://example.com/none)", "`[e](none.md)`"]
    bad = ["#none", "none.md", "other.md#none", "../none/"]
    (tmp_path / "other.md").write_text("# `Two` words\n## Two words\n```\n# None\n```\n")
    page = tmp_path / "page.md"
    page.write_text("# One\n" + " ".join(good) + "\n```\n[f](none.md)\n```\n" + "\n".join(f"[x]({link})" for link in bad))
    assert list(broken(page)) == bad


def test_sizes_are_the_budget():
    text = (ROOT / "docs/performance.md").read_text()
    table = text.split("<!-- sizes: begin -->")[1].split("<!-- sizes: end -->")[0]
    told = [re.findall(r"\w+", row) for row in table.strip().splitlines()[2:]]
    lines = (ROOT / "scripts/size-budget").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    assert told == [row[:3] for row in rows if len(row) == 4]
    assert [f"At most {row[1]} crates" in text for row in rows if row[0] == "crates"] == [True]


def test_targets_are_those_of_the_scripts():
    told = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs/building.md").read_text(), re.M))
    lines = (ROOT / "scripts/targets").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    assert told == {row[0]: ", ".join(row[4:]) for row in rows}
