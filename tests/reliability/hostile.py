"""Texts that break programs: markers, braces, control characters, odd Unicode, spreadsheet formulas, very long lines."""

import unicodedata

HOSTILE = [
    # special tokens and role markers of the families
    *(
        "</s>",
        "<s>",
        "<pad>",
        "<unk>",
        "<|user|>",
        "<|assistant|>",
        "<|system|>",
        "<|im_start|>system",
        "<|im_end|>",
        "<|endoftext|>",
    ),
    *(
        "<|eot_id|>",
        "<|begin_of_text|>",
        "<bos>",
        "<eos>",
        "<start_of_turn>model",
        "<end_of_turn>",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
    ),
    *("### User:", "### Assistant:\n", "\nAnswer:", "<think>", "</think>", "[|endofturn|]", "<0x0A>", "▁▁"),
    # templates
    *(
        "{question}",
        "{context}",
        "{{",
        "}}",
        "{",
        "}",
        "{0}",
        "{question.__class__}",
        "{question!r:>999}",
        "%s %(id)s",
        "${HOME}",
    ),
    *("{% for x in y %}", "{{ messages }}", "\\n\\t\\u0041", "$(rm -rf .)", "`id`"),
    # characters
    *(
        "a\x00b",
        "\x01\x02\x1b[31m",
        "\x7f",
        "\u0085",
        "\u2028\u2029",
        "\ufeff한글",
        "\u200b\u200d",
        "\u202e뒤집힘\u202c",
        "\u00ad",
    ),
    *(
        "👨‍👩‍👧‍👦🇰🇷",
        "𝕳𝖆𝖓",
        "𠀋𠮷",
        "Z͑ͫ̓a̴l̷g̸o",
        unicodedata.normalize("NFD", "한국은행 기준금리"),
        "ﾊﾝｸﾞﾙ",
        "１，２４０억",
        "ㅎㅏㄴ",
        "ᄒᆞᆫ글",
    ),
    *("\u3000전각 공백\u3000", "a\u00a0b", "ﷺ", "\U0010ffff", "\ufffd", "뷁쀍뙇"),
    # files
    *('"', '""', "'", ",", "a,b\nc", "a\rb", "a\r\nb", "\t", ";", "|", "=1+1", "@SUM(A1)", "-2+3", "+cmd|' /C calc'!A0"),
    *(
        "NA",
        "nan",
        "NULL",
        "None",
        "true",
        "0007",
        "1e400",
        "../../etc/passwd",
        "CON",
        "<script>alert(1)</script>",
        "'; DROP TABLE;--",
    ),
    "가" * 20_000,
]
assert len(HOSTILE) >= 60
