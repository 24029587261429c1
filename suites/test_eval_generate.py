"""EVAL-11: Seq2SeqTrainer with predict_with_generate."""

from typing import Any

import pytest

from harness.laws import generation
from harness.runs.kinds import TASKS
from harness.runs.scenarios import by_route, cases
from harness.session.state import skip_if
from harness.subjects.hf_trainer import HFTrainer, recorded_warnings

#: Two full batches. One that is not full is left to EVAL-01.
RUN = TASKS["seq2seq"].but(data={"eval_rows": 8}, per_device_eval_batch_size=4, learning_rate=0.3, save_strategy="no")
#: generation_max_length, the start token included.
LENGTH = 6


class Generating(HFTrainer):
    """Seq2SeqTrainer and its arguments. further: fields of Seq2SeqTrainingArguments."""

    def __init__(self, **further):
        from transformers import Seq2SeqTrainer

        super().__init__(Seq2SeqTrainer)
        self.further = further

    def arguments(self, spec, directory):
        from transformers import Seq2SeqTrainingArguments

        return Seq2SeqTrainingArguments(**self.values(spec, directory), predict_with_generate=True, **self.further)


@pytest.mark.clause("EVAL-11")
@cases(by_route({"plain": RUN}) | {"dora": RUN.but(lora={"use_dora": True})})
def test_what_is_predicted_is_what_the_trained_model_generates(spec, upstream, tmp_path, judge):
    own = upstream.own_class
    skip_if(None if own is None else f"{own.__name__} is no Seq2SeqTrainer, which alone has predict_with_generate")
    trainer = Generating(generation_max_length=LENGTH).build(spec, tmp_path)
    with recorded_warnings([]):
        trainer.train()
        rows: Any = trainer.eval_dataset
        output = trainer.predict(rows)
    judge(generation.greedy(trainer, spec, output, LENGTH))
