"""The pages of docs/ that are written from measurements."""
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

DOCS = Path(__file__).resolve().parents[3] / 'docs'
NUMBER = re.compile(r'\**[-+±]?[\d.,e-]+( ± [\d.]+)?\**|infinite|inf|-|')


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are flush right."""
    rows = list(rows)
    rule = ['---:' if all(map(NUMBER.fullmatch, column)) else '---'
            for column in zip(*rows)]
    return '\n'.join('| ' + ' | '.join(row) + ' |'
                     for row in (header, rule, *rows))


def write_page(name: str, texts: dict[str, str], page: Path) -> Path:
    """Write a page: the template of this name with texts put in."""
    template = Path(__file__).with_name(f'{name}.md').read_text()
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(Template(template).substitute(texts))
    return page
