"""Ask questions on economic news, which are answered in a few words of the article.

Answers are scored by character F1 and submitted as a CSV.
"""

from pathlib import Path

from dandap.data.korean import KINDS, question_kind
from dandap.data.read import read_questions
from dandap.data.rows import Row
from tasks.submission import submission_form
from tasks.task import Task


class EconomicQA(Task):
    """Asks short questions on articles.

    Files are tables of id, context, question and answer, or SQuAD and its relatives.
    """

    name = "economic_qa"
    needs = ("context", "question")
    sample_file = "data/sample/test.csv"
    sample = Row(
        "sample",
        "한빛전자는 올해 1분기 매출 1,240억 원을 기록했다.",
        "한빛전자의 올해 1분기 매출은?",
        ("1,240억 원",),
    )

    def recognises(self, path: Path) -> bool:
        return False  # it takes what no other task knows

    def read(self, paths, columns, need_answers):
        return read_questions(paths, columns, need_answers)

    def kind(self, row):
        kind = question_kind(row.question)
        return f"{KINDS[kind]} ({kind})"

    def form(self, test_file, rows):
        return submission_form(test_file, [row.id for row in rows])

    def submit_joined(self, recipe, folder, member, records):
        return self.submit_csv(folder, member, records)

    def submit(self, recipe, folder, test_file, answered, form):
        import pandas as pd  # 0.4 s, which `import tasks` need not take

        path, _ = super().submit(recipe, folder, test_file, answered, form)
        # The organiser may read the file so, and would score "None" or "NA" as no answer.
        lost = pd.read_csv(path, encoding="utf-8-sig").iloc[:, 1].isna().sum()
        told = (
            f"{lost} answers are empty or words as NA, which pandas' plain read_csv takes for "
            "nothing: review.csv shows them"
        )
        return path, told if lost else None


TASK = EconomicQA()
