"""What `Task.describe` returns to tools.explore."""

from typing import NamedTuple

from dandap.data.rows import Row


class Chart(NamedTuple):
    """Counts by name as columns, or numbers as a histogram."""

    name: str  # of the image file
    title: str
    values: dict[str, int] | list[int]
    label: str


class Description(NamedTuple):
    """The contents of a file whose questions share more than an article."""

    rows: list[Row]
    tables: dict[str, list[tuple]]  # title -> rows; shown before the sizes
    more_tables: dict[str, list[tuple]]  # shown after the sizes
    sizes: dict[str, list[int]]  # name -> values
    charts: list[Chart]
    lists: dict[str, list[dict]]  # name of a CSV file -> its rows
    shared: list[tuple[str, list[str]]]  # a text that is read once, and what follows it
    texts: list[str]  # for the word cloud
