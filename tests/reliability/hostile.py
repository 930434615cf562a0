"""Texts that break programs: special tokens, braces, control characters, odd Unicode, formulas."""

import unicodedata

HOSTILE = [
    # special tokens and role markers of model families
    *"</s> <s> <pad> <unk> <|user|> <|assistant|> <|system|> <|im_start|>system <|im_end|>".split(),
    *"<|endoftext|> <|eot_id|> <|begin_of_text|> <bos> <eos> <start_of_turn>model".split(),
    *"<end_of_turn> [INST] [/INST] <<SYS>> <think> </think> [|endofturn|] <0x0A> ▁▁".split(),
    *("### User:", "### Assistant:\n", "\nAnswer:"),
    # templates
    *"{question} {context} {{ }} { } {0} {question.__class__} {question!r:>999} ${HOME}".split(),
    *("%s %(id)s", "{% for x in y %}", "{{ messages }}", "\\n\\t\\u0041", "$(rm -rf .)", "`id`"),
    # characters
    *("a\x00b", "\x01\x02\x1b[31m", "\x7f", "\u0085", "\u2028\u2029", "\ufeff한글", "\u200b\u200d"),
    *("\u202e뒤집힘\u202c", "\u00ad", "👨‍👩‍👧‍👦🇰🇷", "𝕳𝖆𝖓", "𠀋𠮷", "Z͑ͫ̓a̴l̷g̸o", "ﾊﾝｸﾞﾙ", "１，２４０억"),
    *(unicodedata.normalize("NFD", "한국은행 기준금리"), "ㅎㅏㄴ", "ᄒᆞᆫ글", "뷁쀍뙇", "ﷺ"),
    *("\u3000전각 공백\u3000", "a\u00a0b", "\U0010ffff", "\ufffd"),
    # files
    *('"', '""', "'", ",", "a,b\nc", "a\rb", "a\r\nb", "\t", ";", "|", "=1+1", "@SUM(A1)", "-2+3"),
    *("+cmd|' /C calc'!A0", "<script>alert(1)</script>", "'; DROP TABLE;--"),
    *"NA nan NULL None true 0007 1e400 ../../etc/passwd CON".split(),
    "가" * 20_000,
]
assert len(HOSTILE) >= 60
