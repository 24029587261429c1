"""Trainers and a loop that somebody might have written, each with a fault, for tests of `harness.conformance`."""

import itertools
import json
from pathlib import Path

import torch
from transformers import Trainer, get_scheduler

from harness import TrainerSubject


class Plain(Trainer):
    pass


def plain():
    """Return the plain subclass as a subject, for `pytest suites/ --subject tests.somebodys:plain`."""
    return TrainerSubject(Plain)


class ForgetsItems(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # the last is not used
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


class ShufflesLabels(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            inputs = {**inputs, "labels": inputs["labels"].flip(0)}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class SavesWhole(Trainer):
    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        from safetensors.torch import save_file

        whole = {k: v.detach().clone().contiguous() for k, v in self.model.state_dict().items()}
        save_file(whole, f"{output_dir or self.args.output_dir}/model.safetensors")


class ForgetsOptimizerOnResume(Trainer):
    def _load_optimizer_and_scheduler(self, checkpoint):
        pass


class DividesTwice(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, inputs, num_items_in_batch * 2)


class MovesTheBase(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        with torch.no_grad():
            next(p for p in model.parameters() if not p.requires_grad).mul_(1.001)
        return super().training_step(model, inputs, num_items_in_batch)


class LeavesOneOut(Trainer):
    def create_optimizer(self, *args, **keywords):
        made = super().create_optimizer(*args, **keywords)
        self.optimizer.param_groups[0]["params"].pop()
        return made


class SavesLate(Trainer):
    def _save(self, output_dir=None, state_dict=None):
        state = {k: v.clone() for k, v in self.model.state_dict().items()}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()
        super()._save(output_dir, state_dict)
        self.model.load_state_dict(state)


class ForgetsTheAdapterOnResume(Trainer):
    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        pass


class StartsTheEpochAnew(Trainer):
    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self.args.ignore_data_skip = True


class Raises(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        raise TypeError("training_step() got an unexpected keyword")


def loop(
    model,
    rows,
    batch_size,
    learning_rate,
    steps,
    recorder,
    output=None,
    accumulation=1,
    save_every=0,
    seed=42,
    resume_from=None,
):
    """A loop of accelerate as a user writes it, with five faults.

    It takes the mean of means, cuts short windows by the full number, saves the base with the adapter, trains other rows
    after a resume, and never ends if it is resumed at its end.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from torch.utils.data import DataLoader

    set_seed(seed)
    accelerator = Accelerator(gradient_accumulation_steps=accumulation, cpu=True)

    def collate(chosen):
        return {name: torch.tensor([row[name] for row in chosen]) for name in chosen[0]}

    loader = DataLoader(rows, batch_size=batch_size, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0
    )
    schedule = get_scheduler("linear", optimizer, 0, steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    recorder.optimizer(optimizer)
    step, micro, total = 0, 0, 0.0
    if resume_from is not None:
        accelerator.load_state(resume_from)
        saved = json.loads(Path(resume_from, "loop.json").read_text())
        step, micro = saved["step"], saved["micro"]
    model.train()
    first, skip = divmod(micro, len(loader))
    for _ in itertools.count(first):
        batches = accelerator.skip_first_batches(loader, skip) if skip else loader
        skip = 0
        for batch in batches:
            micro += 1
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                norm = accelerator.clip_grad_norm_(model.parameters(), 1.0) if accelerator.sync_gradients else None
                rate = schedule.get_last_lr()[0]
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            total += float(loss.detach()) / accumulation
            if not accelerator.sync_gradients:
                continue
            step += 1
            recorder.step(step, loss=total, grad_norm=norm, learning_rate=rate)
            total = 0.0
            if save_every and step % save_every == 0:
                target = Path(output, f"checkpoint-{step}")
                accelerator.save_state(str(target))
                accelerator.unwrap_model(model).save_pretrained(target)
                Path(target, "loop.json").write_text(json.dumps({"step": step, "micro": micro}))
                recorder.saved(target)
            if step == steps:
                return
