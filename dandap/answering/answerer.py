"""How a recipe's answers come about: from trees where the model can branch, else by generate.

Where there are choices, the likeliest of them is taken.
"""

from collections.abc import Container, Iterator

from transformers import PreTrainedModel

from dandap.answering.answer import Answer, Decoding, place
from dandap.answering.branch_check import why_no_tree
from dandap.answering.choices import encode_choices, offered, score_choices
from dandap.answering.generate import generate_answers
from dandap.answering.grounding import Grounding
from dandap.answering.tree_decoder import answer_examples
from dandap.data.encode import Encoder, Example
from dandap.errors import InputError
from dandap.model.memory import READ_TOKENS, Plan
from dandap.recipe import Recipe


class Answerer:
    """Answers questions with one model; whether its prompts can branch is tried when it is made."""

    def __init__(self, recipe: Recipe, encoder: Encoder, model: PreTrainedModel, plan: Plan):
        self.recipe, self.encoder, self.model = recipe, encoder, model
        self.tokens_per_batch = plan.tokens_per_batch
        self.decoding = Decoding(
            stop_ids=encoder.stop_ids(model.generation_config),
            pad_id=encoder.tokenizer.pad_token_id,
            max_new_tokens=recipe.max_new_tokens,
            samples=recipe.samples,
            temperature=recipe.temperature,
            seed=recipe.seed,
            beams=recipe.beams,
            repetition_penalty=recipe.repetition_penalty,
        )
        self.grounding = (
            Grounding(encoder.tokenizer, encoder.control_ids) if recipe.grounded else None
        )
        self.why_no_tree = (
            f"beams={recipe.beams}" if recipe.beams > 1 else why_no_tree(model, self.decoding)
        )
        self.is_told = False

    def check(self, examples: list[Example]) -> None:
        """Refuse what the recipe asks for and this model cannot do.

        It is called before training or hours of answering, not after.
        """
        if self.why_no_tree:
            self._refuse_what_needs_trees(examples)
        # The first question's choices are encoded to see that template and tokenizer take them.
        encode_choices(self.encoder, examples[:1], self.recipe)

    def answers(
        self, examples: list[Example], known: Container[str] = ()
    ) -> Iterator[tuple[Example, list[Answer]]]:
        """Yield each example with its answers as batches finish, but for those with known ids.

        There is one answer to a question, or as many as the recipe's samples.
        """
        self.check(examples)
        self._tell_once()
        # By their numbers and not left out of `examples`: the others keep their batches.
        done = {index for index, example in enumerate(examples) if example.row.id in known}
        if self.why_no_tree:
            answered = self._by_generate(examples, done)
        elif any(offered(example, self.recipe) for example in examples):
            answered = self._by_choice(examples, done)
        else:
            answered = self._by_trees(examples, done)
        for index, answers in answered:
            for answer in answers:
                answer.span = place(answer.text, examples[index].context)
            yield examples[index], answers

    def _tell_once(self) -> None:
        """Print what is not as a reader of the recipe would expect, before the first answers."""
        if self.is_told:
            return
        self.is_told, recipe = True, self.recipe
        if self.why_no_tree:
            print(f"reading the article for every question, by generate ({self.why_no_tree})")
        if recipe.samples > 1 and not recipe.temperature:
            print(
                f"the {recipe.samples} samples are all alike at temperature 0; --temperature 0.7 "
                "lets them differ"
            )

    def _by_trees(
        self, examples: list[Example], done: set[int]
    ) -> Iterator[tuple[int, list[Answer]]]:
        text_of = self.grounding.text if self.grounding else self.encoder.decode
        tokens = self.tokens_per_batch
        for index, answers in answer_examples(
            self.model, examples, self.decoding, tokens, self.grounding, done
        ):
            for answer in answers:
                answer.text = text_of(answer.said)
            yield index, answers

    def _by_generate(
        self, examples: list[Example], done: set[int]
    ) -> Iterator[tuple[int, list[Answer]]]:
        prompts = [list(example.prompt_ids) for example in examples]
        # generate reads a batch's prompts all at once; the tree decoder reads some at a time.
        tokens = min(self.tokens_per_batch, READ_TOKENS)
        for index, answer in generate_answers(self.model, prompts, self.decoding, tokens, done):
            answer.text = self.encoder.decode(answer.said)
            yield index, [answer]

    def _by_choice(
        self, examples: list[Example], done: set[int]
    ) -> Iterator[tuple[int, list[Answer]]]:
        """Take the likeliest of the question's own choices, or of the recipe's."""
        ids = encode_choices(self.encoder, examples, self.recipe)
        for index, scores in score_choices(
            self.model, examples, ids, self.decoding.pad_id, self.tokens_per_batch, done
        ):
            texts = offered(examples[index], self.recipe)
            best = max(range(len(scores)), key=scores.__getitem__)
            said = ids[index][best]
            compared = dict(zip(texts, scores, strict=True))
            # Scores are sums over the tokens that were compared; an answer's is their mean.
            mean = scores[best] / len(said)
            yield index, [Answer(said, True, mean, texts[best], choices=compared)]

    def _refuse_what_needs_trees(self, examples: list[Example]) -> None:
        asked = {
            "samples": self.recipe.samples > 1,
            "temperature": self.recipe.temperature > 0,
            "grounded": self.recipe.grounded,
            "choices": any(offered(example, self.recipe) for example in examples),
        }
        wanted = [name for name, is_wanted in asked.items() if is_wanted]
        if wanted:
            raise InputError(
                f"{', '.join(wanted)}: not with this model, whose prompts cannot branch "
                f"({self.why_no_tree}). Leave them out."
            )
