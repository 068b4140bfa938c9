"""The tables of README and documentation, from `benchmarks/results`.

    python benchmarks/tables.py [--check]

Rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->` in README.md and docs. With
--check nothing is written, and the exit status is 1 if a table differs from its results.
"""

import argparse
import re
import sys
from pathlib import Path

import tables_claims
import tables_prag
import tables_retrieval
import tables_speed
import tables_srrag
import tables_systems

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES = {
    **tables_systems.TABLES,
    **tables_srrag.TABLES,
    **tables_prag.TABLES,
    **tables_claims.TABLES,
    **tables_speed.TABLES,
    **tables_retrieval.TABLES,
}


def format_table(rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(text: str, page: Path) -> str:
    """A page's text with its tables as the results have them."""
    docs = "docs" if page.parent == ROOT else "."

    def replace(found: re.Match[str]) -> str:
        table = format_table(TABLES[found[2]]()).replace("](PAGES/", f"]({docs}/")
        return f"{found[1]}{table.replace('](./', '](')}{found[3]}"

    return _BLOCK.sub(replace, text)


def main() -> int:
    """Rewrites or checks all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text("utf-8")
        filled = fill(text, page)
        if filled == text:
            continue
        stale.append(str(page.relative_to(ROOT)))
        if not check:
            page.write_text(filled, encoding="utf-8")
    if check and stale:
        print(
            f"error: tables of {', '.join(stale)} differ from benchmarks/results; run "
            "python benchmarks/tables.py",
            file=sys.stderr,
        )
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
