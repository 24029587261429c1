"""CKPT: the files of a checkpoint, and what each of them holds."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch

from harness.laws import checkpoint, equal, optimizer_file, rotation, state_files
from harness.runs.scenarios import PLAIN, SAVING, SCENARIOS, SHORT, by_route, cases, over, saving
from harness.spec import ADD, GET
from harness.subjects import observer
from harness.verdict import both, raises, same

SAVED_PLAIN = by_route({"plain": SAVING["plain"]})
NAMED = {name: SAVING[name] for name in ("plain", "rank-1", "rank-16", "named-foo")}

STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
ADAPTER = {"adapter_model.safetensors", "adapter_config.json"}

#: The tiny llama: hidden 64, key and value width 32, feed forward 128, 2 layers, vocabulary 256.
LAYER_NUMBERS = 64 * 64 + 64 * 32 + 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64
MODEL_NUMBERS = 2 * 256 * 64 + 2 * LAYER_NUMBERS + 64


def lora_numbers(rank):
    """Numbers of a LoRA adapter on q_proj (64 to 64) and v_proj (64 to 32) of both layers."""
    return 2 * rank * ((64 + 64) + (64 + 32))


def lora_tensors(rank):
    """The adapter file of the same adapter: key -> [dtype, shape]."""
    return {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.{matrix}.weight": ["F32", shape]
        for layer in (0, 1)
        for module, width in (("q_proj", 64), ("v_proj", 32))
        for matrix, shape in (("lora_A", [rank, 64]), ("lora_B", [width, rank]))
    }


def each_checkpoint(trace, law):
    """Judge every checkpoint of a run by a law, and that all checkpoints that were due were written."""
    return both(rotation.saved_when_due(trace), *[law(one) for one in trace.checkpoints])


def adapter_file(one):
    """Return the path of a checkpoint's adapter file: at the top, or in the adapter's own directory."""
    return Path(one.path) / next(iter(checkpoint.adapter_files(one)), checkpoint.ADAPTER_FILE)


def adapter_config(one):
    return json.loads((Path(one.path) / "adapter_config.json").read_text(encoding="utf-8"))


# ---- which files ----


@pytest.mark.clause("CKPT-01")
def test_get_peft_model_files(upstream, train, judge):
    expected = STATE | ADAPTER | {"README.md", "training_args.bin"}
    trace = train(SAVING["plain"])
    judge(each_checkpoint(trace, lambda c: same(f"files of checkpoint-{c.step}", set(c.files), expected)))


@pytest.mark.clause("CKPT-02")
def test_add_adapter_files(upstream, train, judge):
    expected = STATE | ADAPTER | {"generation_config.json", "training_args.bin"}
    trace = train(SAVED_PLAIN[f"plain/{ADD}"])
    judge(each_checkpoint(trace, lambda c: same(f"files of checkpoint-{c.step}", set(c.files), expected)))


@pytest.mark.clause("CKPT-01")
@over(by_route({name: SAVING[name] for name in ("plain", "modules-to-save", "nf4")}))
def test_what_resume_needs_is_there_and_nothing_of_the_base(trace, judge):
    allowed = STATE | ADAPTER | {"README.md", "generation_config.json", "training_args.bin"}
    judge(
        each_checkpoint(
            trace,
            lambda c: both(
                same(f"checkpoint-{c.step}: files to resume from", (STATE | ADAPTER) & set(c.files), STATE | ADAPTER),
                same(f"checkpoint-{c.step}: other files", set(c.files) - allowed, set()),
            ),
        )
    )


@pytest.mark.clause("CKPT-03")
def test_without_an_adapter_the_whole_model_is_saved(upstream, judge, tmp_path):
    from harness.fixtures import models

    trainer = upstream.build(saving(PLAIN.but(max_steps=3)), tmp_path, model=models.build(PLAIN.model))
    trainer.train()
    seen = observer.inspect_checkpoint(tmp_path / "checkpoint-3", "default")
    whole = {"config.json", "generation_config.json", "model.safetensors"}
    weights = Path(seen.path) / "model.safetensors"
    tensors = weights.stat().st_size - 8 - checkpoint.header(weights)[0]
    judge(
        both(
            same("files", set(seen.files), STATE | whole | {"training_args.bin"}),
            same("bytes of tensors in model.safetensors", tensors, 4 * MODEL_NUMBERS),
            same("tensors of an adapter", checkpoint.adapter_files(seen), {}),
        )
    )


# ---- the adapter file ----


@pytest.mark.clause("CKPT-04")
@pytest.mark.parametrize("name", [*NAMED, *[f"{name}/{ADD}" for name in NAMED]])
def test_keys_are_paths_in_the_base_without_the_adapter_name(name, train, judge):
    spec = by_route(NAMED)[name]
    expected = lora_tensors(spec.adapter.config["r"])
    judge(
        each_checkpoint(
            train(spec),
            lambda c: same(f"checkpoint-{c.step}: tensors", list(checkpoint.adapter_files(c).values()), [expected]),
        )
    )


@pytest.mark.clause("CKPT-04")
@over(by_route(SAVING))
def test_adapter_file_is_a_header_and_its_tensors(trace, judge):
    judge(checkpoint.size_law(trace))


@pytest.mark.clause("CKPT-04")
@over(by_route(NAMED))
def test_adapter_file_says_that_it_is_of_torch(trace, judge):
    # transformers refuses to load a file without this entry.
    judge(
        each_checkpoint(
            trace,
            lambda c: same(
                f"checkpoint-{c.step}: metadata",
                checkpoint.header(adapter_file(c))[1].get("__metadata__", {}),
                {"format": "pt"},
            ),
        )
    )


@pytest.mark.clause("CKPT-04")
@pytest.mark.parametrize("route", [GET, ADD])
def test_adapter_grows_by_four_bytes_a_number(route, train, judge):
    sizes = {}
    for name in ("rank-1", "rank-16"):
        trace = train(SAVING[name].but(adapter={"route": route}))
        file = adapter_file(trace.checkpoints[-1])
        sizes[name] = file.stat().st_size - checkpoint.header(file)[0]
    judge(same("rank 16 over rank 1", sizes["rank-16"] - sizes["rank-1"], 4 * (lora_numbers(16) - lora_numbers(1))))


@pytest.mark.clause("CKPT-04")
@pytest.mark.parametrize("name", SAVED_PLAIN)
def test_same_run_writes_the_same_bytes(name, train, judge):
    def digests(trace):
        return {c.step: hashlib.sha256(adapter_file(c).read_bytes()).hexdigest() for c in trace.checkpoints}

    spec = SAVED_PLAIN[name]
    judge(same("digest of each adapter file, by step", digests(train(spec, again=True)), digests(train(spec))))


# ---- adapter_config.json ----


@pytest.mark.clause("CKPT-05")
@pytest.mark.parametrize("name", ["plain", "rank-1", "modules-to-save"])
@pytest.mark.parametrize("route", [GET, ADD])
def test_adapter_config_holds_the_config(name, route, train, judge):
    spec = SAVING[name].but(adapter={"route": route})
    wanted = {**spec.adapter.config, "peft_type": "LORA"}

    def law(one):
        saved = {key: sorted(value) if isinstance(value, list) else value for key, value in adapter_config(one).items()}
        seen = {key: saved[key] for key in wanted if key in saved}
        return same(f"checkpoint-{one.step}: adapter_config.json", seen, wanted)

    judge(each_checkpoint(train(spec), law))


@pytest.mark.clause("CKPT-05")
@pytest.mark.parametrize(("route", "expected"), [(GET, True), (ADD, False)])
def test_inference_mode_is_set_by_get_peft_model_only(upstream, route, expected, train, judge):
    trace = train(SAVING["plain"].but(adapter={"route": route}))
    modes = {c.step: adapter_config(c)["inference_mode"] for c in trace.checkpoints}
    judge(same("inference_mode, by step", modes, dict.fromkeys((3, 6, 9, 10), expected)))


@pytest.mark.clause("CKPT-05")
@pytest.mark.parametrize("route", [GET, ADD])
def test_base_of_a_directory_is_named_and_one_from_a_config_is_not(route, train, judge, tmp_path):
    from harness.fixtures import models

    models.build(PLAIN.model).save_pretrained(tmp_path)
    spec = saving(PLAIN.but(max_steps=1, adapter={"route": route}))
    loaded, built = train(spec.but(model={"path": str(tmp_path)})), train(spec)
    named, unnamed = (adapter_config(t.checkpoints[-1])["base_model_name_or_path"] for t in (loaded, built))
    judge(both(same("base loaded from a directory", named, str(tmp_path)), same("base built", unnamed or None, None)))


@pytest.mark.clause("CKPT-05")
def test_lists_have_the_same_order_in_every_process(upstream, judge, tmp_path):
    """The order is stable: a set of strings has another order in each process, the given and the sorted order do not.

    Twelve names have one of these two orders by chance in one of 200 million processes.
    """
    from peft import LoraConfig

    given = [f"{name}_proj" for name in "gqbxkzvmocjt"]
    LoraConfig(target_modules=list(given)).save_pretrained(str(tmp_path))
    seen = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    judge(same("target_modules are in the order given, or sorted", seen in (given, sorted(given)), True))


@pytest.mark.clause("CKPT-06")
@pytest.mark.parametrize("inference_mode", [False, True])
def test_config_in_memory_is_unchanged_by_a_save(upstream, inference_mode, judge, tmp_path):
    from harness.fixtures import models
    from harness.subjects.hf_trainer import inject

    model = inject(models.build(PLAIN.model), PLAIN.but(lora={"inference_mode": inference_mode}).adapter)
    before = model.peft_config["default"].to_dict()
    model.save_pretrained(str(tmp_path))
    after = model.peft_config["default"].to_dict()
    # The base's directory is filled in at the first save. "" and None both mean that it has none.
    for config in (before, after):
        config["base_model_name_or_path"] = config["base_model_name_or_path"] or None
    judge(both(same("config after saving", after, before), same("mode", after["inference_mode"], inference_mode)))


@pytest.mark.clause("CKPT-06")
@pytest.mark.parametrize("name", SAVED_PLAIN)
def test_run_that_saves_is_equal_to_one_that_does_not(name, train, judge):
    spec = SAVED_PLAIN[name]
    judge(equal.equal_runs(train(spec), train(PLAIN.but(adapter={"route": spec.adapter.route}))))


# ---- optimizer.pt, scheduler.pt, rng_state.pth ----


@pytest.mark.clause("CKPT-07")
@over(by_route(SAVING))
def test_optimizer_file_holds_two_moments_of_each_trained_tensor(trace, judge):
    judge(optimizer_file.holds_the_trained_tensors(trace))


@pytest.mark.clause("CKPT-07")
@over(SAVING)
def test_last_optimizer_file_is_the_optimizer_at_the_end(trace, judge):
    judge(optimizer_file.optimizer_is_current(trace))


@pytest.mark.clause("CKPT-27")
@over(
    by_route(SAVING)
    | {
        name: saving(SHORT.but(optim=name, lora={"r": 64}))
        for name in ("adamw_torch", "sgd", "adafactor", "adamw_bnb_8bit", "paged_adamw_32bit", "lion_32bit")
    }
)
def test_optimizer_file_is_its_tensors_and_their_names(trace, judge):
    judge(optimizer_file.size_law(trace))


@pytest.mark.clause("CKPT-07")
def test_optimizer_file_grows_by_eight_bytes_a_number(train, judge):
    sizes = {name: train(SAVING[name]).checkpoints[-1].files["optimizer.pt"] for name in ("rank-1", "rank-16")}
    judge(same("rank 16 over rank 1", sizes["rank-16"] - sizes["rank-1"], 8 * (lora_numbers(16) - lora_numbers(1))))


@pytest.mark.clause("CKPT-07")
def test_sgd_has_no_state(train, judge):
    trace = train(SAVING["plain"].but(optim="sgd"))
    saved = {c.step: optimizer_file.load_state(c, "optimizer.pt") for c in trace.checkpoints}
    seen = {step: optimizer_file.tensor_bytes(state) for step, state in saved.items()}
    judge(same("bytes of tensors in optimizer.pt, by step", seen, dict.fromkeys((3, 6, 9, 10), 0)))


@pytest.mark.clause("CKPT-08")
@over({name: saving(SCENARIOS[name]) for name in ("plain", "warmup-decay-clip", "cosine", "accumulation")})
def test_scheduler_stands_where_the_next_step_starts(trace, judge):
    judge(optimizer_file.scheduler_is_current(trace))


@pytest.mark.clause("CKPT-08")
def test_linear_schedule_is_saved_at_its_own_rate(train, judge):
    trace = train(SAVING["plain"])
    rates = {c.step: optimizer_file.load_state(c, "scheduler.pt")["_last_lr"] for c in trace.checkpoints}
    judge(same("_last_lr, by step", rates, {step: [1e-2 * ((10 - step) / 10)] * 2 for step in (3, 6, 9, 10)}))


@pytest.mark.clause("CKPT-09")
@cases({name: saving(SCENARIOS[name]) for name in ("plain", "epochs-1.5")})
def test_random_states_are_those_at_the_save(spec, train, judge):
    seen = {}

    def listen(trace, event):
        if event == "save":
            seen[trace.steps[-1].number] = state_files.generators()

    observer.listeners.append(listen)
    try:
        trace = train(spec, again=True)
    finally:
        observer.listeners.remove(listen)
    judge(state_files.generators_are_current(trace, seen))


# ---- trainer_state.json, training_args.bin ----


@pytest.mark.clause("CKPT-10")
@over(
    by_route({"plain": SAVING["plain"]})
    | {name: saving(SCENARIOS[name]) for name in ("accumulation", "eval-every-5", "epochs-1.5", "n37")}
)
def test_trainer_state_is_that_of_the_save(trace, judge):
    judge(state_files.state_is_current(trace))


@pytest.mark.clause("CKPT-10")
def test_trainer_control_is_kept_as_the_save_was_asked_for(upstream, train, judge):
    def law(one):
        control = one.state["stateful_callbacks"].get("TrainerControl", {}).get("args", {})
        wanted = {"should_save": True, "should_training_stop": one.step == 10}
        return same(f"checkpoint-{one.step}: TrainerControl", {name: control.get(name) for name in wanted}, wanted)

    judge(each_checkpoint(train(SAVING["plain"]), law))


@pytest.mark.clause("CKPT-11")
@pytest.mark.parametrize("route", [GET, ADD])
def test_training_arguments_are_pickled(upstream, route, train, tmp_path, judge):
    spec = SAVING["plain"].but(adapter={"route": route})
    kind = type(upstream.arguments(spec, tmp_path))
    names = ("max_steps", "per_device_train_batch_size", "learning_rate", "seed")

    def law(one):
        built, scalars = state_files.pickled(Path(one.path) / "training_args.bin")
        wanted = {name: spec.arguments[name] for name in names}
        return both(
            same(
                f"checkpoint-{one.step}: pickled class",
                f"{kind.__module__} {kind.__name__}" in built,
                True,
            ),
            same(f"checkpoint-{one.step}: its fields", {name: scalars.get(name) for name in names}, wanted),
        )

    judge(each_checkpoint(train(spec), law))


@pytest.mark.clause("CKPT-11")
def test_training_arguments_are_no_weights(upstream, train, judge):
    path = Path(train(SAVING["plain"]).checkpoints[0].path) / "training_args.bin"
    judge(
        raises(
            "torch.load of training_args.bin with weights_only=True",
            pickle.UnpicklingError,
            "Weights only load failed",
            lambda: torch.load(path, weights_only=True),
        )
    )
