"""EVAL-11: Seq2SeqTrainer with predict_with_generate."""

import pytest

from harness.laws import generation
from harness.runs.kinds import TASKS
from harness.runs.scenarios import by_route
from harness.subjects.hf_trainer import HFTrainer, recorded_warnings

RUN = TASKS["seq2seq"].but(data={"eval_rows": 8}, per_device_eval_batch_size=4, learning_rate=0.3, save_strategy="no")


class Generating(HFTrainer):
    """Seq2SeqTrainer and its arguments. further: fields of Seq2SeqTrainingArguments."""

    def __init__(self, **further):
        from transformers import Seq2SeqTrainer

        super().__init__(Seq2SeqTrainer)
        self.further = further

    def arguments(self, spec, directory):
        from transformers import Seq2SeqTrainingArguments

        return Seq2SeqTrainingArguments(**self.values(spec, directory), predict_with_generate=True, **self.further)


#: A batch that is not full is left to EVAL-01.
CASES = by_route({"plain": RUN}) | {"dora": RUN.but(lora={"use_dora": True})}


@pytest.mark.clause("EVAL-11")
@pytest.mark.parametrize(
    ("spec", "length"),
    [
        *[pytest.param(spec, 6, id=name) for name, spec in CASES.items()],
        pytest.param(RUN, None, id="length-by-default"),
    ],
)
def test_what_is_predicted_is_what_the_trained_model_generates(spec, length, upstream, tmp_path, judge):
    given = {} if length is None else {"generation_max_length": length}
    trainer = Generating(**given).build(spec, tmp_path)
    with recorded_warnings([]):
        trainer.train()
        output = trainer.predict(trainer.eval_dataset)
    judge(generation.greedy(trainer, spec, output, length or generation.DEFAULT_LENGTH))
