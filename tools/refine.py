"""Clean NIKL dialogues: python -m tools.refine IN OUT [--report].

There are nine steps, in the order below; --report says what each changed. Referred utterances are
never merged away, dropped or emptied: what reference_id names is there afterwards too.
"""

import sys
from pathlib import Path

# So that `python tools/NAME.py` works like `python -m tools.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import re
from collections.abc import Callable

from dandap.cli import Parser, parse, run_script
from dandap.files import refuse_existing, write_bytes
from tasks.dialogue_inference import Item, load_items, to_json, utterance_ids

Turn = dict


# --report prints each step's docstring after its number, so these are phrases and no sentences.


def join_lines(text: str) -> str:
    """1: line breaks and repeated spaces to one space."""
    return re.sub(r"\s+", " ", text).strip()


def spell_yes(text: str) -> str:
    """2: a word of two or more ㅇ to 응."""
    return re.sub(r"(?<!\S)ㅇ{2,}(?!\S)", "응", text)


def shorten_marks(text: str) -> str:
    """3: four or more dots to three, three or more question marks to two."""
    return re.sub(r"\?{3,}", "??", re.sub(r"\.{4,}", "...", text))


def delete_signs(text: str) -> str:
    """4: delete ~ ! > < @ _ / - ᆢ : ; ( ) ^."""
    return join_lines(re.sub(r"[~!><@_/\-ᆢ:;()^]", "", text))


def delete_greetings(text: str) -> str:
    """5: delete words that begin with 안녕 or 반갑습."""
    return join_lines(re.sub(r"(?<!\S)(?:안녕|반갑습)\S*", "", text))


def name_speakers(text: str) -> str:
    """6: name1 to 화자1, name2 to 화자2."""
    return re.sub(r"name([12])(?!\d)", r"화자\1", text)


def delete_jamo(text: str) -> str:
    """7: delete runs of two or more bare jamo (ㅋㅋ, ㅠㅡㅠ)."""
    return join_lines(re.sub(r"[ㄱ-ㅎㅏ-ㅣ][ㄱ-ㅎㅏ-ㅣ]+", "", text))


def empty_symbols(text: str) -> str:
    """8: an utterance without Hangul, letters and digits has only symbols and becomes empty."""
    return text if re.search(r"[가-힣A-Za-z0-9]", text) else ""


TEXT_STEPS: tuple[Callable[[str], str], ...] = (
    join_lines,
    spell_yes,
    shorten_marks,
    delete_signs,
    delete_greetings,
    name_speakers,
    delete_jamo,
    empty_symbols,
)


def merge_turns(turns: list[Turn], referred: set[str]) -> list[Turn]:
    """9: merge consecutive utterances of one speaker, never across a referred one; `utterance_id`
    becomes a list.
    """
    merged: list[Turn] = []
    for turn in turns:
        before = merged[-1] if merged else None
        apart = before is None or before["speaker"] != turn["speaker"]
        if apart or referred & {*utterance_ids(before), *utterance_ids(turn)}:
            merged.append(turn)
            continue
        ids = [*utterance_ids(before), *utterance_ids(turn)]
        merged[-1] = {
            **before,
            "utterance": f"{before['utterance']} {turn['utterance']}",
            "utterance_id": ids,
        }
    return merged


def refine(item: Item, counts: dict[str, int]) -> Item:
    """Return the item cleaned; `counts` gains what each step changed, in utterances."""
    content = item["input"]
    referred = set(content["reference_id"])
    turns = [
        refine_turn(turn, bool(referred & set(utterance_ids(turn))), counts)
        for turn in content["conversation"]
    ]
    # Dropped before merging, so that an emptied utterance does not keep two of a speaker apart.
    kept = [turn for turn in turns if turn["utterance"] or referred & set(utterance_ids(turn))]
    merged = merge_turns(kept, referred)
    counts["dropped"] = counts.get("dropped", 0) + len(turns) - len(kept)
    counts["merge_turns"] = counts.get("merge_turns", 0) + len(kept) - len(merged)
    return {**item, "input": {**content, "conversation": merged}}


def refine_turn(turn: Turn, is_referred: bool, counts: dict[str, int]) -> Turn:
    """Take one utterance through the steps.

    A referred one keeps its text where a step would leave nothing.
    """
    text = turn["utterance"]
    # The order counts: of "ㅋㅋ?" the seventh step leaves "?", which the eighth empties.
    for step in TEXT_STEPS:
        cleaned = step(text)
        if cleaned != text and (cleaned or not is_referred):
            counts[step.__name__] = counts.get(step.__name__, 0) + 1
            text = cleaned
    return {**turn, "utterance": text}


def main(argv: list[str] | None = None) -> dict[str, int]:
    """Run the command line; return what each step changed, in utterances."""
    arguments = parse(command_line(), argv)
    source, target = Path(arguments.source), Path(arguments.target)
    refuse_existing(target, False, "OUT", "Choose another name.")
    items = load_items(source)
    counts: dict[str, int] = {}
    cleaned = [refine(item, counts) for item in items]
    write_bytes(target, to_json(cleaned, source.read_bytes(), source))
    print(f"{target}: {len(cleaned):,} items")
    if arguments.report:
        for number, step in enumerate((*TEXT_STEPS, merge_turns), 1):
            # A docstring may stand on several lines; it is printed on one.
            what = " ".join(step.__doc__[3:].split())
            print(
                f"  {number} {step.__name__:<16} {counts.get(step.__name__, 0):>6} utterances   "
                f"{what}"
            )
        print(f"  dropped, because nothing was left: {counts['dropped']}")
    return counts


def command_line() -> Parser:
    """Return the options: the file to clean, and where the cleaned one goes."""
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN", help="NIKL dialogue JSON")
    parser.add_argument("target", metavar="OUT", help="where the cleaned file goes; must not exist")
    parser.add_argument("--report", action="store_true", help="print what each step changed")
    return parser


if __name__ == "__main__":
    run_script(main)
