"""Clean NIKL dialogues in nine steps: python -m tools.refine IN OUT [--report].

Utterances that reference_id names are never merged, dropped or emptied. --report prints what each
step changed.
"""

import sys
from pathlib import Path

# `python tools/NAME.py` works like `python -m tools.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import re
from collections.abc import Callable

from dandap.cli import Parser, parse, run_script
from dandap.files import refuse_output, write_bytes
from tasks.dialogue_inference import Item, load_items, to_json, utterance_ids

# --report prints the steps' docstrings.


def join_lines(text: str) -> str:
    """1: replace line breaks and repeated spaces with one space."""
    return re.sub(r"\s+", " ", text).strip()


def spell_yes(text: str) -> str:
    """2: replace words of two or more ㅇ with 응."""
    return re.sub(r"(?<!\S)ㅇ{2,}(?!\S)", "응", text)


def shorten_marks(text: str) -> str:
    """3: shorten four or more dots to three, three or more question marks to two."""
    return re.sub(r"\?{3,}", "??", re.sub(r"\.{4,}", "...", text))


def delete_signs(text: str) -> str:
    """4: delete ~ ! > < @ _ / - ᆢ : ; ( ) ^."""
    return join_lines(re.sub(r"[~!><@_/\-ᆢ:;()^]", "", text))


def delete_greetings(text: str) -> str:
    """5: delete words that begin with 안녕 or 반갑습."""
    return join_lines(re.sub(r"(?<!\S)(?:안녕|반갑습)\S*", "", text))


def name_speakers(text: str) -> str:
    """6: replace name1 with 화자1, name2 with 화자2."""
    return re.sub(r"name([12])(?!\d)", r"화자\1", text)


def delete_jamo(text: str) -> str:
    """7: delete runs of two or more bare jamo (ㅋㅋ, ㅠㅡㅠ)."""
    return join_lines(re.sub(r"[ㄱ-ㅎㅏ-ㅣ][ㄱ-ㅎㅏ-ㅣ]+", "", text))


def empty_symbols(text: str) -> str:
    """8: empty utterances without Hangul, letters and digits."""
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


def merge_turns(turns: list[Item], referred: set[str]) -> list[Item]:
    """9: merge consecutive utterances of a speaker, except referred ones; ids become a list."""
    merged: list[Item] = []
    for turn in turns:
        before = merged[-1] if merged else None
        if before is None or before["speaker"] != turn["speaker"]:
            merged.append(turn)
            continue
        ids = [*utterance_ids(before), *utterance_ids(turn)]
        if referred & set(ids):
            merged.append(turn)
            continue
        text = f"{before['utterance']} {turn['utterance']}"
        merged[-1] = before | {"utterance": text, "utterance_id": ids}
    return merged


def refine(item: Item, counts: dict[str, int]) -> Item:
    """Return a cleaned item; add the number of utterances that each step changed to `counts`."""
    content = item["input"]
    referred = set(content["reference_id"])
    turns = []
    for turn in content["conversation"]:
        text, is_referred = turn["utterance"], bool(referred & set(utterance_ids(turn)))
        # The order matters: of "ㅋㅋ?" the seventh step leaves "?", which the eighth deletes.
        for step in TEXT_STEPS:
            cleaned = step(text)
            if cleaned != text and (cleaned or not is_referred):
                counts[step.__name__] = counts.get(step.__name__, 0) + 1
                text = cleaned
        # Dropped before merging, so that the utterances around it can merge.
        if text or is_referred:
            turns.append(turn | {"utterance": text})
    merged = merge_turns(turns, referred)
    dropped = len(content["conversation"]) - len(turns)
    counts["dropped"] = counts.get("dropped", 0) + dropped
    counts["merge_turns"] = counts.get("merge_turns", 0) + len(turns) - len(merged)
    return item | {"input": content | {"conversation": merged}}


def main(argv: list[str] | None = None) -> dict[str, int]:
    """Run the command line; return the number of utterances that each step changed."""
    arguments = parse(command_line(), argv)
    source, target = Path(arguments.source), Path(arguments.target)
    refuse_output(target, False, "OUT")
    counts: dict[str, int] = {}
    cleaned = [refine(item, counts) for item in load_items(source)]
    write_bytes(target, to_json(cleaned, source.read_bytes(), source))
    print(f"{target}: {len(cleaned):,} items")
    if arguments.report:
        for step in (*TEXT_STEPS, merge_turns):
            number, what = step.__doc__.split(": ", 1)
            count = counts.get(step.__name__, 0)
            print(f"  {number} {step.__name__:<16} {count:>6} utterances   {what}")
        print(f"  dropped because they became empty: {counts['dropped']}")
    return counts


def command_line() -> Parser:
    """Return the parser of the options."""
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN", help="NIKL dialogue JSON")
    parser.add_argument("target", metavar="OUT", help="the cleaned file; must not exist")
    parser.add_argument("--report", action="store_true", help="print what each step changed")
    return parser


if __name__ == "__main__":
    run_script(main)
