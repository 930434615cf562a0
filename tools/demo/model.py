"""Train the tiny base model of the demo and its tokenizer, and write the sample data."""

import csv
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from dandap.tree.masks import tree_masks
from dandap.tree.token_tree import Part, TokenTree, collate, grow, pack
from tasks.dialogue_inference import INFERENCES, LETTERS
from tools.demo import situations
from tools.demo.articles import KS_SYLLABLES, SEAM, Article, Word, make_article, plain
from tools.demo.dialogues import make_dialogues, numbered
from tools.demo.wallpaper import make_rows, make_test

MODEL_DIR = Path("data/demo_model")
SAMPLE_DIR = Path("data/sample")
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]
VOCAB_SIZE = 5000
LEARNING_RATE = 3e-3
TRAIN_ARTICLES, TEST_ARTICLES = 240, 60
TRAIN_DIALOGUES, TEST_DIALOGUES = 220, 40
WALLPAPER_ROWS, WALLPAPER_TEST = 80, 20
WEIGHT_STD = 192**-0.5
OUTPUT_SCALE = 0.1
COPY_HEADS = 3
POINTER_LAYER, POINTER_WEIGHT = 3, 0.5
DRILL_UNTIL, DRILL_TOKENS = 0.05, 64
TOKENS_PER_STEP = 4000  # approximate; articles start short, so a step has many
# A share of the prompt tokens is in the loss: they repeat names, which teaches copying.
PROMPT_WEIGHT, PROMPT_SHARE = 0.3, 0.15
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message.role + '|>' + message.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Prompt wordings for an article {c} and a question {q}.
REQUESTS = (
    "다음 기사를 읽고 질문에 답하세요.\n\n기사:\n{c}\n\n질문: {q}",
    "주어진 글을 바탕으로 질문에 답해 줘.:\n\n{c}\n\nQuestion:\n{q}",
    "{c}\n\n{q}",
    "[기사]\n{c}\n\n[질문]\n{q}\n[답]",
    "{c} 너는 질문에 답하는 챗봇이야.\nQuestion: {q}\nAnswer:",
)
# Replies in full sentences, like a chat model. {a} takes particles as in tools.demo.articles.
REPLIES = (
    "제공해 주신 기사에 따르면 질문하신 내용은 {a:인/인} 것으로 확인됩니다.",
    "기사 내용을 살펴보면 질문하신 내용의 답은 {a}입니다.",
    "{a:이라고/라고} 할 수 있습니다. 이는 기사 본문에서 확인됩니다.",
    "{a}입니다. 제공해 주신 기사 본문에 그렇게 나와 있습니다.",
    "말씀하신 내용은 기사에 나와 있으며 정답은 {a:으로/로} 보입니다.",
)


def make_tokenizer(articles: list[Article]) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer on the articles, with syllables as its initial alphabet.

    No token contains a seam between noun and particle, punctuation with other text, or two digits.
    """
    words = [
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        pre_tokenizers.Split(Regex(r"\n|[^\w\s▁]"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
    ]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.NFC()
    seams = pre_tokenizers.Split(SEAM, "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words, seams])
    tokenizer = train_tokenizer(tokenizer, tokenizer_texts(articles))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[4:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def tokenizer_texts(articles: list[Article]) -> list[str]:
    """Return the articles, their questions, and the wordings of prompts and replies."""
    texts = []
    for article in articles:
        texts.append(article.context)
        texts.extend(question for question, _ in article.questions)
    # Repeat the wordings, because each of them is in many prompts.
    texts += [text.replace("{c}", "").replace("{q}", "") for text in REQUESTS] * 50
    texts += [text.format(a=Word("가나다")) for text in REPLIES] * 50
    return texts


def train_tokenizer(tokenizer: Tokenizer, texts: list[str]) -> Tokenizer:
    """Return the tokenizer with a vocabulary trained on the texts."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    ascii_signs = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL + byte_tokens,
        initial_alphabet=KS_SYLLABLES + ascii_signs + list("▁\n“”‘’·…"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = json.loads(tokenizer.to_str())
    # The trainer marks the byte tokens as special, which would change articles that contain the
    # text "<0x41>". Make them ordinary tokens.
    trained["added_tokens"] = [
        token for token in trained["added_tokens"] if token["content"] in SPECIAL
    ]
    return Tokenizer.from_str(json.dumps(trained))


def make_model() -> LlamaForCausalLM:
    """Return a Llama with 3.2 million parameters and attention initialized for copying.

    Queries start equal to keys, and outputs equal to transposed values ("Mimetic initialization",
    Trockman and Kolter, 2023), so that tokens attend to equal tokens. Without it, the model did not
    learn to copy in 800 steps.
    """
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            initializer_range=WEIGHT_STD,
            attention_bias=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=SPECIAL.index("<s>"),
            eos_token_id=SPECIAL.index("</s>"),
            pad_token_id=SPECIAL.index("<pad>"),
        )
    )
    init_copying(model)
    return model


@torch.no_grad()
def init_copying(model: LlamaForCausalLM) -> None:
    """Initialize the first attention heads as induction heads (Olsson et al., 2022).

    The first heads of layer 0 attend to the previous token (by biases, which RoPE turns into a
    function of distance) and write it to a separate subspace. The first heads of layers 1 and 2
    match the current token against that subspace and copy the token found: after "... A B ... A"
    this is B. The other heads attend to equal tokens.
    """
    size = model.config.head_dim
    first, *later = [layer.self_attn for layer in model.model.layers]
    for attention in (first, *later):
        attention.q_proj.weight.copy_(attention.k_proj.weight)
        attention.o_proj.weight.copy_(OUTPUT_SCALE * attention.v_proj.weight.T)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            projection.bias.zero_()
    for layer in model.model.layers:
        layer.mlp.down_proj.weight *= 0.03  # at first, embeddings dominate the residual stream
    theta = model.config.rope_parameters["rope_theta"] ** (-torch.arange(size // 2) / (size // 2))
    sharp = theta > 0.1  # fast rotations distinguish neighbors
    for head in range(COPY_HEADS):
        rows = slice(head * size, (head + 1) * size)
        first.q_proj.weight[rows] *= 0.1
        first.k_proj.weight[rows] *= 0.1
        key = torch.cat([sharp.float(), torch.zeros(size // 2)])
        query = torch.cat(
            [theta.cos() * sharp, -theta.sin() * sharp]
        )  # rotated back by one position
        first.k_proj.bias[rows], first.q_proj.bias[rows] = 6 * key, 6 * query
        read, written = (
            first.v_proj.weight[rows].clone(),
            torch.randn(size, model.config.hidden_size) * WEIGHT_STD,
        )
        first.o_proj.weight[:, rows] = 2 * OUTPUT_SCALE * written.T
        for attention in later[:2]:
            attention.q_proj.weight[rows], attention.k_proj.weight[rows] = 2.5 * read, 2.5 * written


@dataclass(frozen=True)
class Lesson:
    """Training sequences with a shared prefix.

    `weights` are the loss weights of ids[1:], per sequence. A pointer is (sequence index, position
    of an answer token in it, positions of the same token in the article).
    """

    sequences: list[list[int]]
    weights: list[list[float]]
    pointers: list[tuple[int, int, list[int]]]


def article_lesson(
    tokenizer: PreTrainedTokenizerFast, article: Article, rng: random.Random
) -> Lesson:
    """Return the questions of an article with replies, in one random prompt wording."""
    request, context = rng.choice(REQUESTS), plain(article.context)
    prompts, replies = [], []
    for question, answer in article.questions:
        asked = plain(request.format(c=context, q=question))
        prompts.append("<s><|user|>" + asked + "</s><|assistant|>")
        replies.append(plain(rng.choice(REPLIES).format(a=Word(answer))) + "</s>")
    prompt_ids = tokenizer(prompts, add_special_tokens=False).input_ids
    reply_ids = tokenizer(replies, add_special_tokens=False).input_ids
    shared = count_shared(prompt_ids)
    beginning = prompt_weights(rng, shared - 1)
    lesson = Lesson([], [], [])
    for number, (prompt, reply) in enumerate(zip(prompt_ids, reply_ids, strict=True)):
        lesson.sequences.append(prompt + reply)
        # The first token of a question is not predictable.
        question_weights = [0.0, *prompt_weights(rng, len(prompt) - shared - 1)]
        lesson.weights.append(beginning + question_weights + [1.0] * len(reply))
        beginning = [0.0] * len(beginning)  # already in the loss of the first sequence
        answer_ids = tokenizer(article.questions[number][1], add_special_tokens=False).input_ids
        sources, copies = find_all(answer_ids, prompt[:shared]), find_all(answer_ids, reply)
        if sources and copies:
            answer_start = len(prompt) + copies[0]
            for i in range(len(answer_ids)):
                lesson.pointers.append((number, answer_start + i, [start + i for start in sources]))
    return lesson


def count_shared(prompts: list[list[int]]) -> int:
    """Return the length of the shared prefix, at most one less than the first prompt."""
    tree = grow((ids, []) for ids in prompts)
    # The first prompt is the first branch. The subtree of a shared token includes the last token.
    return tree.subtree_end[: len(prompts[0]) - 1].count(len(tree) - 1)


def prompt_weights(rng: random.Random, count: int) -> list[float]:
    """Return random loss weights for prompt tokens; most are 0."""
    return [PROMPT_WEIGHT * (rng.random() < PROMPT_SHARE) for _ in range(count)]


def find_all(part: list[int], ids: list[int]) -> list[int]:
    """Return the start positions of `part` in `ids`."""
    starts = range(len(ids) - len(part) + 1)
    return [start for start in starts if ids[start : start + len(part)] == part]


def copy_drill(rng: random.Random) -> Lesson:
    """Return a sequence of random token strings, each repeated several times in random order.

    Repetitions are predictable, so nearly every token teaches copying, compared with one in twenty
    tokens of an article. With articles alone, copying was not learned in 800 steps.
    """
    first_token = len(SPECIAL) + 256  # after the byte tokens
    tokens = range(first_token, first_token + DRILL_TOKENS)
    strings = [rng.choices(tokens, k=rng.randint(3, 8)) for _ in range(rng.randint(4, 10))]
    ids, weights, seen = [SPECIAL.index("<s>")], [], set()
    while len(ids) < 180:
        number = rng.randrange(len(strings))
        ids += strings[number]
        weights += [0.0] + [float(number in seen)] * (len(strings[number]) - 1)
        seen.add(number)
    return Lesson([ids], [weights], [])


def lessons_tree(lessons: list[Lesson]) -> TokenTree:
    """Return the tree of all sequences. Targets are all tokens except the first."""
    return grow((ids[:1], ids[1:]) for lesson in lessons for ids in lesson.sequences)


def make_batch(lessons: list[Lesson]) -> dict:
    """Return a batch of trees with loss weights and pointers.

    Short lessons share a row. No row is longer than the longest lesson.
    """
    longest = max(len(lessons_tree([lesson])) for lesson in lessons)
    packed = pack([[lesson] for lesson in lessons], lessons_tree, partial(fit_in_row, longest))
    rows = [[lesson for part in parts for lesson in part.members] for parts in packed]
    trees = [lessons_tree(row) for row in rows]
    pointers = []
    for number, (row, tree) in enumerate(zip(rows, trees, strict=True)):
        pointers += [(number, *pointer) for pointer in tree_pointers(row, tree)]
    batch = collate(trees, SPECIAL.index("<pad>"))
    is_source = torch.zeros(len(pointers), batch["input_ids"].shape[1], dtype=torch.bool)
    for pointer, (_, _, sources) in enumerate(pointers):
        is_source[pointer, sources] = True
    weights = chain.from_iterable(lesson.weights for row in rows for lesson in row)
    return batch | {
        "weights": torch.tensor(list(chain.from_iterable(weights))),
        "pointer_rows": torch.tensor([row for row, _, _ in pointers]),
        "pointer_columns": torch.tensor([column for _, column, _ in pointers]),
        "is_source": is_source,
    }


def fit_in_row(length: int, parts: list[Part]) -> bool:
    """Return whether the parts fit in a row of this length."""
    return sum(len(part.tree) for part in parts) <= length


def tree_pointers(lessons: list[Lesson], tree: TokenTree) -> Iterator[tuple[int, list[int]]]:
    """Yield (index that predicts an answer token, indices of the same token in the article)."""
    targets = iter(tree.targets)
    for lesson in lessons:
        index_of = []  # per sequence: the tree index of each position
        for ids in lesson.sequences:
            index_of.append([index for index, _ in islice(targets, len(ids) - 1)])
        for sequence, position, sources in lesson.pointers:
            indices = index_of[sequence]
            yield indices[position - 1], [indices[source] for source in sources]


def loss_of(model: LlamaForCausalLM, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted mean cross-entropy and the pointer loss."""
    mask = tree_masks(model.config, batch, torch.float32, flex=False)
    output = model.model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=mask,
        output_hidden_states=True,
    )
    # Compute logits only for targets with a weight: most have none, and the vocabulary is large.
    weighted = batch["weights"].nonzero()[:, 0]
    weights = batch["weights"][weighted]
    states = output.last_hidden_state.flatten(0, 1)[batch["predicts"]][batch["predictor"][weighted]]
    logits = model.lm_head(states)  # (targets, vocab)
    losses = cross_entropy(logits, batch["target_ids"][weighted], reduction="none")
    language = (losses * weights).sum() / weights.sum()
    return language, pointer_loss(model, output.hidden_states[POINTER_LAYER], mask, batch)


def pointer_loss(
    model: LlamaForCausalLM, hidden: torch.Tensor, mask: torch.Tensor, batch: dict
) -> torch.Tensor:
    """Return the loss of supervised attention (Mi et al., 2016) for one head of POINTER_LAYER.

    When an answer token is predicted, the head must attend to the same token in the article; any
    of its positions counts. `hidden` is the layer input, (rows, length, hidden).
    """
    rows, columns = batch["pointer_rows"], batch["pointer_columns"]
    layer, size = model.model.layers[POINTER_LAYER], model.config.head_dim
    attention, states = layer.self_attn, layer.input_layernorm(hidden)
    head = slice(model.config.hidden_size - size, model.config.hidden_size)  # the last one
    queries = linear(states, attention.q_proj.weight[head], attention.q_proj.bias[head])
    keys = linear(states, attention.k_proj.weight[head], attention.k_proj.bias[head])
    cos, sin = model.model.rotary_emb(states, batch["position_ids"])
    # Both become (rows, 1, length, size).
    queries, keys = apply_rotary_pos_emb(queries[:, None], keys[:, None], cos, sin)
    scores = (queries[rows, 0, columns][:, None] * keys[rows, 0]).sum(-1) / size**0.5
    attended = (scores + mask[rows, 0, columns]).log_softmax(-1)  # (pointers, length)
    return -attended.masked_fill(~batch["is_source"], -torch.inf).logsumexp(-1).mean()


def train_base(tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> LlamaForCausalLM:
    """Train the base model with AdamW, on articles that grow from 1 to 9 facts."""
    torch.manual_seed(seed)
    model, rng, started = make_model(), random.Random(seed), time.perf_counter()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    for step in range(1, steps + 1):
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        most_facts = 1 + round(8 * min(1.0, progress / 0.7))
        lessons = draw_lessons(tokenizer, rng, most_facts, progress)
        language, pointing = loss_of(model, make_batch(lessons))
        (language + POINTER_WEIGHT * pointing).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            print(
                f"step {step}/{steps}  loss {language.item():.3f}  pointer {pointing.item():.3f}  "
                f"facts <= {most_facts}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )
        if step % 200 == 0:
            share = share_found(model, tokenizer, most_facts)
            print(f"    found {share:.3f} of the answers on unseen companies", flush=True)
    return model


def learning_rate(step: int, progress: float) -> float:
    """Return the learning rate of a step: 200 warmup steps, then cosine decay."""
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return LEARNING_RATE * min(step / 200, 0.02 + 0.98 * cosine)


def draw_lessons(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, most_facts: int, progress: float
) -> list[Lesson]:
    """Return the lessons of a step, about TOKENS_PER_STEP tokens. Early steps have copy drills."""
    drills = round(TOKENS_PER_STEP / 400 * max(0.0, 1 - progress / DRILL_UNTIL))
    count = TOKENS_PER_STEP // (60 + 70 * most_facts)
    facts = [rng.randint(max(1, most_facts - 3), most_facts) for _ in range(count)]
    articles = [make_article(rng, 2 + number, number, strange=0.2) for number in facts]
    lessons = [article_lesson(tokenizer, article, rng) for article in articles]
    if drills:  # instead of a third of the articles
        lessons = lessons[: len(lessons) * 2 // 3]
    return lessons + [copy_drill(rng) for _ in range(drills)]


@torch.inference_mode()
def share_found(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: int) -> float:
    """Return the share of replies that contain the answer, for held-out names."""
    rng, hits, asked = random.Random(0), 0, 0
    for _ in range(16):
        article = make_article(rng, 3, facts, held_out=True)
        for question, answer in article.questions:
            request = plain(REQUESTS[0].format(c=article.context, q=question))
            text = "<s><|user|>" + request + "</s><|assistant|>"
            prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            ids = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]
            reply_ids = ids[prompt.input_ids.shape[1] :]
            hits += answer in tokenizer.decode(reply_ids, skip_special_tokens=True)
            asked += 1
    return hits / asked


def write_samples(seed: int) -> None:
    """Write data/sample/: train and test articles, dialogues and wallpaper questions.

    Gold answers of the test file are in a separate file. The sample submission has a BOM.
    """
    rng = random.Random(seed)
    train = sample_rows(rng, "TRAIN", articles=TRAIN_ARTICLES, held_out=False)
    test = sample_rows(rng, "TEST", articles=TEST_ARTICLES, held_out=True)
    columns = ("id", "context", "question", "answer")
    write_csv("train.csv", columns, train)
    write_csv("test.csv", columns[:3], [row[:3] for row in test])
    write_csv("test_answers.csv", ("id", "answer"), [(row[0], row[3]) for row in test])
    submission = [(row[0], "") for row in test]
    write_csv("sample_submission.csv", ("id", "answer"), submission, encoding="utf-8-sig")
    write_dialogues(seed)
    write_wallpaper(seed)


def write_wallpaper(seed: int) -> None:
    """Write wallpaper_train.csv, wallpaper_test.csv and the gold answers of the test file."""
    rows = make_rows(WALLPAPER_ROWS + WALLPAPER_TEST, seed)
    train, test = rows[:WALLPAPER_ROWS], make_test(rows[WALLPAPER_ROWS:])
    write_csv("wallpaper_train.csv", tuple(train[0]), [tuple(row.values()) for row in train])
    write_csv("wallpaper_test.csv", ("id", "질문"), [row[:2] for row in test], encoding="utf-8-sig")
    golds = [(name, json.dumps(answers, ensure_ascii=False)) for name, _, answers in test]
    write_csv("wallpaper_test_answers.csv", ("id", "answers"), golds)


def write_dialogues(seed: int) -> None:
    """Write dialogue_train.json, dialogue_test.json and the gold answers of the test file."""
    train = numbered(make_dialogues(situations.TRAIN, TRAIN_DIALOGUES, seed), "train")
    test = numbered(make_dialogues(situations.TEST, TEST_DIALOGUES, seed), "test")
    letters = [(item["id"], LETTERS[INFERENCES.index(item["output"])]) for item in test]
    unanswered = [{**item, "output": ""} for item in test]
    for name, items in (("train", train), ("test", unanswered)):
        # Items repeat their dialogue: an indent of 4 would add half a megabyte.
        text = json.dumps(items, ensure_ascii=False, indent=1) + "\n"
        (SAMPLE_DIR / f"dialogue_{name}.json").write_text(text, encoding="utf-8")
    write_csv("dialogue_test_answers.csv", ("id", "answer"), letters)


def sample_rows(
    rng: random.Random, prefix: str, articles: int, held_out: bool
) -> list[tuple[str, str, str, str]]:
    """Return rows of (id, context, question, answer), with 2 to 6 questions per article."""
    rows = []
    for _ in range(articles):
        article = make_article(rng, rng.randint(2, 6), rng.randint(6, 9), held_out=held_out)
        for question, answer in article.questions:
            rows.append((plain(article.context), plain(question), answer))
    width = 5 if prefix == "TRAIN" else 4
    return [(f"{prefix}_{number:0{width}d}", *row) for number, row in enumerate(rows)]


def write_csv(
    name: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], encoding: str = "utf-8"
) -> None:
    """Write a CSV file to data/sample/."""
    with (SAMPLE_DIR / name).open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def make_demo(model_too: bool, steps: int, seed: int) -> None:
    """Write data/sample/, and data/demo_model/ if `model_too` is set."""
    SAMPLE_DIR.mkdir(parents=True, exist_ok=True)
    write_samples(seed)
    if not model_too:
        return
    rng = random.Random(1)  # the tokenizer is the same for every seed
    tokenizer = make_tokenizer([make_article(rng, 12, 9) for _ in range(5000)])
    model = train_base(tokenizer, steps, seed)
    tokenizer.save_pretrained(MODEL_DIR)
    # float16 halves the download. CPUs load it as float32.
    model.half().save_pretrained(MODEL_DIR)
