"""The pages of docs/ that are written from measurements."""
import re
from collections.abc import Sequence

NUMBER = re.compile(r'[-+±]?[\d.,e-]+|infinite|inf|-')


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are flush right."""
    rule = ['---:' if all(map(NUMBER.fullmatch, column)) else '---'
            for column in zip(*rows)]
    return '\n'.join('| ' + ' | '.join(row) + ' |'
                     for row in (header, rule, *rows))
