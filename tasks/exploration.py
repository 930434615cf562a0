"""What tools.explore shows of a task's file that is more than questions on articles."""

from dataclasses import dataclass, field
from typing import NamedTuple

from dandap.data.rows import Row


class Chart(NamedTuple):
    """Describes a picture for tools.explore: counts by name, or the distribution of numbers."""

    name: str
    title: str
    values: dict[str, int] | list[int]
    label: str


@dataclass
class Description:
    """Holds what tools.explore shows of a file that is more than questions on articles."""

    rows: list[Row]
    tables: dict[str, list[tuple]]  # title -> rows of cells; what stands above the sizes
    more_tables: dict[str, list[tuple]]  # and what stands below them
    sizes: dict[str, list[int]]  # what is measured -> its values
    charts: list[Chart]
    lists: dict[str, list[dict]]  # a CSV's name -> its rows
    shared: list[tuple[str, list[str]]]  # a text that is read once, and what is read after it
    texts: list[str] = field(default_factory=list)  # whose words are counted
