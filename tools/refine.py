"""Clean NIKL dialogues in nine steps: python -m tools.refine IN OUT [--report].

Utterances in reference_id are never merged, dropped or emptied. --report prints the changes.
"""

import re
from collections import Counter
from pathlib import Path

from dandap.cli import Parser, parse, run_script
from dandap.files import check_output, write_bytes
from tasks.dialogue_inference import Item, load_items, to_json, utterance_ids

# Steps on utterances: pattern, replacement, description.
STEPS = {
    "join_lines": (r"\s+", " ", "replace line breaks and repeated spaces with one space"),
    "spell_yes": (r"(?<!\S)ㅇ{2,}(?!\S)", "응", "replace words of two or more ㅇ with 응"),
    "shorten_marks": (r"(\.{3})\.+|(\?{2})\?+", r"\1\2", "keep three dots, two question marks"),
    "delete_signs": (r"[~!><@_/\-ᆢ:;()^]", "", "delete ~ ! > < @ _ / - ᆢ : ; ( ) ^"),
    "delete_greetings": (r"(?<!\S)(안녕|반갑습)\S*", "", "delete words like 안녕 and 반갑습니다"),
    "name_speakers": (r"name([12])(?!\d)", r"화자\1", "replace name1 with 화자1, name2 with 화자2"),
    "delete_jamo": (r"[ㄱ-ㅎㅏ-ㅣ]{2,}", "", "delete runs of two or more bare jamo (ㅋㅋ, ㅠㅡㅠ)"),
    "empty_symbols": (r"\A[^가-힣A-Za-z0-9]*\Z", "", "empty utterances without letters and digits"),
}


def clean(text: str, step: str) -> str:
    """Apply one cleaning step to a text."""
    pattern, put, _ = STEPS[step]
    return " ".join(re.sub(pattern, put, text).split())


def merge_turns(turns: list[Item], referred: set[str]) -> list[Item]:
    """Merge consecutive utterances of a speaker, except referred ones; ids become lists."""
    merged: list[Item] = []
    for turn in turns:
        before = merged[-1] if merged else {"speaker": None, "utterance_id": []}
        ids = [*utterance_ids(before), *utterance_ids(turn)]
        if before["speaker"] != turn["speaker"] or referred & set(ids):
            merged.append(turn)
        else:
            text = f"{before['utterance']} {turn['utterance']}"
            merged[-1] = before | {"utterance": text, "utterance_id": ids}
    return merged


def refine(item: Item, counts: Counter[str]) -> Item:
    """Return a cleaned item, and add the number of changed utterances per step to `counts`."""
    content = item["input"]
    referred = set(content["reference_id"])
    turns = []
    for turn in content["conversation"]:
        text, is_referred = turn["utterance"], bool(referred & set(utterance_ids(turn)))
        # Order matters: the seventh step turns "ㅋㅋ?" into "?", which the eighth deletes.
        for step in STEPS:
            cleaned = clean(text, step)
            if cleaned != text and (cleaned or not is_referred):
                counts[step] += 1
                text = cleaned
        # Drop empty utterances before merging.
        if text or is_referred:
            turns.append(turn | {"utterance": text})
    merged = merge_turns(turns, referred)
    counts["dropped"] += len(content["conversation"]) - len(turns)
    counts["merge_turns"] += len(turns) - len(merged)
    return item | {"input": content | {"conversation": merged}}


def main(argv: list[str] | None = None) -> Counter[str]:
    """Parse the arguments, run, and return the number of changed utterances per step."""
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN", help="NIKL dialogue JSON")
    parser.add_argument("target", metavar="OUT", help="the cleaned file; must not exist")
    parser.add_argument("--report", action="store_true", help="print what each step changed")
    arguments = parse(parser, argv)
    source, target = Path(arguments.source), Path(arguments.target)
    check_output(target, False, "OUT")
    counts = Counter[str]()
    cleaned = [refine(item, counts) for item in load_items(source)]
    write_bytes(target, to_json(cleaned, source))
    print(f"{target}: {len(cleaned):,} items")
    if arguments.report:
        for number, (step, (*_, what)) in enumerate(STEPS.items(), 1):
            print(f"  {number} {step:<16} {counts[step]:>6} utterances   {what}")
        print(f"  9 merge_turns      {counts['merge_turns']:>6} utterances   of one speaker")
        print(f"  dropped because they became empty: {counts['dropped']}")
    return counts


if __name__ == "__main__":
    run_script(main)
