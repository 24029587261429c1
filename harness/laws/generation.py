"""What Seq2SeqTrainer predicts with predict_with_generate: the tokens that the trained model generates greedily.

The tokens are generated here one by one from the whole sequence, without a cache and without upstream's generate().
"""

from __future__ import annotations

from typing import Any

import torch

from harness.fixtures import data
from harness.spec import RunSpec
from harness.tolerance import REBUILT
from harness.verdict import Verdict, verdict


def greedy(trainer: Any, spec: RunSpec, output: Any, length: int) -> Verdict:
    """Check that the predictions are the tokens of greatest probability, one after the other. test_loss is judged, too.

    - output: of predict() on the evaluation rows.
    - length: max_length of the generation, the start token included. What follows must be padding (pad_token_id or -100).
    """
    model, rows, size = trainer.model.eval(), data.rows(spec.data)[1], trainer.args.eval_batch_size
    seen, findings, losses = torch.as_tensor(output.predictions), [], []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        batch = {name: torch.tensor([row[name] for row in part]) for name in data.columns(spec.data)}
        with torch.no_grad():
            losses.append(float(model(**batch)["loss"]))
            made = _generated(model, {name: one for name, one in batch.items() if name != "labels"}, length)
        for index, row in enumerate(made.tolist()):
            found = seen[first + index].tolist()
            padding = set(found[len(row) :]) - {model.config.pad_token_id, -100}
            if found[: len(row)] != row or padding:
                findings.append(f"row {first + index}: {found}, expected {row} and padding")
    loss = sum(losses) / len(losses)
    if abs(output.metrics["test_loss"] - loss) > REBUILT.loss:
        findings.append(f"test_loss is {output.metrics['test_loss']}, expected {loss}")
    return verdict("what is predicted is what the trained model generates greedily", findings[:3], rows=len(rows))


def _generated(model: Any, batch: dict[str, torch.Tensor], length: int) -> torch.Tensor:
    config = model.config
    made = torch.full((len(batch["input_ids"]), 1), config.decoder_start_token_id)
    ended = torch.zeros(len(made), dtype=torch.bool)
    while made.shape[1] < length and not ended.all():
        token = model(**batch, decoder_input_ids=made)["logits"][:, -1].argmax(-1)
        token = token.masked_fill(ended, config.pad_token_id)
        ended |= token == config.eos_token_id
        made = torch.cat([made, token[:, None]], 1)
    return made
