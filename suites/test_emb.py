"""EMB: embedding and output layers: when they are looked up at the hub, saved, tied and trained."""

from collections import Counter
from typing import Any

import pytest
import torch

from harness.fixtures import data, hub, models, tensor_shapes
from harness.fixtures.resized_embeddings import FAMILY
from harness.laws import checkpoint, embeddings, rebuilt
from harness.laws.equal import same_adapter
from harness.laws.several import completes
from harness.runs.scenarios import PLAIN, by_route, cases, continued, over
from harness.spec import ADD, GET
from harness.subjects.hf_trainer import inject
from harness.tensors.names import canonical
from harness.verdict import both, same, verdict

#: Four steps, saved at the second and the fourth.
SAVED = PLAIN.but(max_steps=4, save_strategy="steps", save_steps=2)
SAVES = 2
EMBEDDINGS, HEAD = f"{tensor_shapes.EMBEDDINGS}.weight", f"{tensor_shapes.HEAD}.weight"
NAME = "someone/their-base"


def based_on(origin, vocab_size=256, **config):
    """Return SAVED on a base of this origin (see harness.fixtures.resized_embeddings), resized to `vocab_size`."""
    return SAVED.but(model={"family": FAMILY, "config": {"origin": origin, "vocab_size": vocab_size, **config}})


def reload(spec, path, route):
    """Return state_dict() of the spec's base after loading the adapter at `path` by one of the two routes."""
    import peft

    base = models.build(spec.model)
    if route == GET:
        return peft.PeftModel.from_pretrained(base, path).state_dict()
    base.load_adapter(path)
    return base.state_dict()


# ---- lookups at the hub ----


@pytest.mark.clause("EMB-01")
@cases(by_route({"hub-name": based_on(NAME)}))
def test_a_base_with_a_hub_name_is_looked_up_once_a_save(spec, train, judge):
    with hub.standing_in(answer=False) as asked:
        trace = train(spec, again=True)
    judge(both(completes(trace), same("lookups", asked.lookups, [(NAME, "config.json")] * SAVES)))


@pytest.mark.clause("EMB-01")
@cases(by_route({"built-from-config": based_on("config"), "directory": based_on("directory")}))
def test_a_base_without_a_hub_name_is_not_looked_up(spec, train, judge):
    with hub.standing_in(answer=True) as asked:
        trace = train(spec, again=True)
    judge(both(completes(trace), same("lookups", asked.lookups, [])))


@pytest.mark.clause("EMB-01")
@cases(by_route({"resized": based_on(NAME, 260)}))
def test_another_vocabulary_at_the_hub_saves_the_embeddings(spec, train, judge):
    with hub.standing_in(answer=True, vocab_size=256) as asked:
        trace = train(spec, again=True)
    read = same("configs read from the hub", asked.configs, [NAME] * SAVES)
    judge(both(read, embeddings.saved_whole(trace, tensor_shapes.embeddings(260))))


@pytest.mark.clause("EMB-01")
@cases(by_route({"not-resized": based_on(NAME)}))
def test_the_same_vocabulary_at_the_hub_saves_the_adapter_alone(spec, train, judge):
    with hub.standing_in(answer=True, vocab_size=256):
        trace = train(spec, again=True)
    judge(embeddings.tensors_saved(trace, tensor_shapes.lora()))


ASSUMED = f"Could not find a config file in {NAME} - will assume that the vocabulary was not modified."


@pytest.mark.clause("EMB-02")
@cases(by_route({"offline": based_on(NAME)}))
def test_offline_nothing_is_asked_and_each_save_warns(spec, train, judge):
    with hub.standing_in(answer=True, offline=True) as asked:
        trace = train(spec, again=True)
    silent = same("lookups", asked.lookups, [])
    judge(both(silent, embeddings.warned(trace, ASSUMED, SAVES), embeddings.tensors_saved(trace, tensor_shapes.lora())))


@pytest.mark.clause("EMB-02")
@cases(by_route({"no-network": based_on(NAME)}))
def test_a_failing_network_costs_a_warning_and_not_the_run(spec, train, judge):
    with hub.standing_in(answer=ConnectionError("no route to host")):
        trace = train(spec, again=True)
    why = embeddings.warned(trace, "no route to host", SAVES)
    judge(both(why, embeddings.warned(trace, ASSUMED, SAVES), embeddings.tensors_saved(trace, tensor_shapes.lora())))


# ---- resized embeddings ----

DIRECTORY = based_on("directory", 260)


@pytest.mark.clause("EMB-03")
@over(by_route({"directory": DIRECTORY}))
def test_resized_embeddings_are_saved_whole(trace, judge):
    judge(embeddings.saved_whole(trace, tensor_shapes.embeddings(260)))


@pytest.mark.clause("EMB-03")
@over({"second-adapter": DIRECTORY.but(adapter={"others": {"second": {}}})})
def test_resized_embeddings_are_saved_with_every_adapter(trace, judge):
    judge(embeddings.saved_whole(trace, tensor_shapes.embeddings(260)))


@pytest.mark.clause("EMB-03")
def test_resuming_restores_resized_embeddings(train, judge):
    # Both legs resize the same base, but draw different values for the new rows.
    other = based_on("directory", 260, new_rows_seed=1).model
    spec = continued(DIRECTORY, 2, model={"config": other.config})
    judge(embeddings.restored(train(spec), train(spec.first_leg()), (EMBEDDINGS, HEAD)))


@pytest.mark.clause("EMB-03")
@pytest.mark.parametrize("route", [GET, ADD])
@cases(by_route({"saved": DIRECTORY}))
def test_reloading_restores_resized_embeddings(spec, route, upstream, train, judge):
    trace = train(spec)
    other = based_on("directory", 260, new_rows_seed=1)
    judge(embeddings.reloaded(reload(other, trace.checkpoint(4).path, route), trace, (EMBEDDINGS, HEAD)))


@pytest.mark.clause("EMB-04")
@over(by_route({"built-from-config": based_on("config", 260)}))
def test_resized_embeddings_of_a_built_base_are_saved_whole(trace, judge):
    judge(embeddings.saved_whole(trace, tensor_shapes.embeddings(260)))


# ---- adapted embeddings ----

LORA_OF_EMBEDDINGS: dict[str, Any] = {
    f"{tensor_shapes.EMBEDDINGS}.lora_embedding_A": [8, 256],
    f"{tensor_shapes.EMBEDDINGS}.lora_embedding_B": [64, 8],
}
LORA_OF_HEAD: dict[str, Any] = {
    f"{tensor_shapes.HEAD}.lora_A.weight": [8, 64],
    f"{tensor_shapes.HEAD}.lora_B.weight": [256, 8],
}
#: target_modules, and which of the two layers they name.
TARGETS = {
    "both": (["q_proj", "v_proj", "embed_tokens", "lm_head"], (EMBEDDINGS, HEAD)),
    "embed_tokens": (["q_proj", "v_proj", "embed_tokens"], (EMBEDDINGS,)),
    "lm_head": (["q_proj", "v_proj", "lm_head"], (HEAD,)),
    # Earlier releases of peft searched for the whole name in the pattern's text.
    "regular-expression": (r".*\.(q_proj|v_proj|embed_\w+)", (EMBEDDINGS,)),
    "path": (["q_proj", "v_proj", "model.embed_tokens"], (EMBEDDINGS,)),
}


@pytest.mark.clause("EMB-05")
@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        pytest.param(spec, TARGETS[id.partition("/")[0]][1], id=id)
        for id, spec in by_route(
            {name: SAVED.but(lora={"target_modules": targets}) for name, (targets, _) in TARGETS.items()}
        ).items()
    ],
)
def test_an_adapted_embedding_is_saved_with_its_base_weight(spec, layers, train, judge):
    trace = train(spec)
    whole = {name: shape for name, shape in tensor_shapes.embeddings().items() if name in layers}
    own = {**(LORA_OF_EMBEDDINGS if EMBEDDINGS in layers else {}), **(LORA_OF_HEAD if HEAD in layers else {})}
    judge(
        both(
            embeddings.tensors_saved(trace, {**tensor_shapes.lora(), **own, **whole}),
            embeddings.saved_whole(trace, whole),
            embeddings.moved(trace, trained=own, frozen=whole),
        )
    )


@pytest.mark.clause("CKPT-25")
@over(
    {
        f"embeddings/{name}": spec
        for name, spec in {
            **by_route({name: SAVED.but(lora={"target_modules": targets}) for name, (targets, _) in TARGETS.items()}),
            **by_route({"resized": DIRECTORY}),
        }.items()
    }
)
def test_a_checkpoint_holds_no_weights_but_those_of_adapted_and_resized_layers(trace, judge):
    judge(checkpoint.adapter_only(trace))


# ---- tied embeddings ----

TIED = SAVED.but(model={"family": "llama-tied"})


@pytest.mark.clause("EMB-06")
@over(by_route({"plain": TIED}))
def test_a_plain_lora_leaves_tied_embeddings_alone(trace, judge):
    judge(
        both(
            embeddings.tied(trace, EMBEDDINGS, HEAD),
            embeddings.moved(trace, frozen=(EMBEDDINGS, HEAD)),
            embeddings.tensors_saved(trace, tensor_shapes.lora()),
        )
    )


@pytest.mark.clause("EMB-06")
@over(by_route({"one-of-two/embed_tokens": TIED.but(lora={"modules_to_save": ["embed_tokens"]})}))
def test_saving_the_embedding_trains_it_apart_from_the_output_layer(trace, judge):
    judge(trained_alone(trace, EMBEDDINGS, HEAD))


@pytest.mark.clause("EMB-06")
@over(by_route({"one-of-two/lm_head": TIED.but(lora={"modules_to_save": ["lm_head"]})}))
def test_saving_the_output_layer_trains_it_apart_from_the_embedding(trace, judge):
    judge(trained_alone(trace, HEAD, EMBEDDINGS))


def trained_alone(trace, one, other):
    original = one.replace(".weight", ".original_module.weight")
    saved = {**tensor_shapes.lora(), one: [256, 64]}
    return both(
        embeddings.moved(trace, trained=(one,), frozen=(other, original)), embeddings.tensors_saved(trace, saved)
    )


@pytest.mark.clause("EMB-06")
@cases(
    by_route(
        {
            f"ensure-weight-tying/{name}": TIED.but(lora={"modules_to_save": [name], "ensure_weight_tying": True})
            for name in ("embed_tokens", "lm_head")
        }
    )
)
def test_ensure_weight_tying_keeps_one_trained_tensor(spec, upstream, train, judge):
    trace = train(spec)
    judge(both(embeddings.moved(trace, trained=(EMBEDDINGS, HEAD)), embeddings.tied(trace, EMBEDDINGS, HEAD)))
    state = reload(spec, trace.checkpoint(4).path, spec.adapter.route)
    judge(embeddings.reloaded(state, trace, (EMBEDDINGS, HEAD)))


TIED_LORA = TIED.but(lora={"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True})


@pytest.mark.clause("EMB-06")
@cases({"ensure-weight-tying/moved": TIED_LORA})
def test_lora_of_tied_layers_is_one_wherever_the_model_goes(spec, upstream, judge):
    model = inject(models.build(spec.model), spec.adapter)
    findings = [] if tied_pairs(model) == 2 else ["A and B of the two layers share no memory to begin with"]
    # A cast moves each tensor, as .to("cuda") does.
    moved = tied_pairs(model.to(torch.float64))
    findings += [] if moved == 2 else [f"{2 - moved} of A and B share no memory once the model has moved"]
    judge(verdict("A of one layer and B of the other are one", findings))


def tied_pairs(model):
    """Count which of A and B of the embedding share memory with B and A of the output layer."""
    found = {canonical(name): parameter.data_ptr() for name, parameter in model.named_parameters()}
    of_embedding = {found.get(f"{tensor_shapes.EMBEDDINGS}.lora_embedding_{part}") for part in "AB"}
    of_output = {found.get(f"{tensor_shapes.HEAD}.lora_{part}.weight") for part in "AB"}
    return len((of_embedding & of_output) - {None})


@pytest.mark.clause("EMB-06")
@over(by_route({"ensure-weight-tying/lora": TIED_LORA}))
def test_lora_of_tied_layers_is_one(trace, judge):
    """The A of one layer is the transposed B of the other, after training and after loading."""
    embedding = {name.rpartition("lora_embedding_")[2]: t for name, t in trace.adapter.items() if "embedding_" in name}
    head = {part: trace.adapter.get(f"{tensor_shapes.HEAD}.lora_{part}.weight") for part in "AB"}
    seen = {part: tensor for part, tensor in head.items() if tensor is not None}
    # A run that ended early has neither; `reloads` reports that.
    wanted = {
        part: tensor.T for other, part in (("B", "A"), ("A", "B")) if (tensor := embedding.get(other)) is not None
    }
    judge(both(same_adapter(seen, wanted), rebuilt.reloads(trace)))


# ---- single rows ----

#: The two most frequent token ids, so that both get gradients within the ten steps of an epoch.
ROWS = [
    token
    for token, _ in Counter(token for row in data.rows(SAVED.data)[0] for token in row["input_ids"]).most_common(2)
]
DELTA = f"{tensor_shapes.EMBEDDINGS}.token_adapter.trainable_tokens_delta"
TOKENS = SAVED.but(lora={"trainable_token_indices": ROWS}, max_steps=10, save_steps=5)


@pytest.mark.clause("EMB-07")
@over(by_route({"untied": TOKENS}))
def test_chosen_rows_alone_are_trained_and_saved(trace, judge):
    judge(both(rows_alone(trace), embeddings.moved(trace, frozen=(HEAD,))))


@pytest.mark.clause("EMB-07")
@over(by_route({"tied": TOKENS.but(model={"family": "llama-tied"})}))
def test_chosen_rows_of_tied_layers_are_trained_as_one(trace, judge):
    judge(
        both(
            rows_alone(trace),
            embeddings.tied(trace, DELTA, DELTA.replace(tensor_shapes.EMBEDDINGS, tensor_shapes.HEAD)),
        )
    )


def rows_alone(trace):
    embedding = f"{tensor_shapes.EMBEDDINGS}.token_adapter.weight"
    return both(
        embeddings.moved(trace, trained=(DELTA,), frozen=(embedding,)),
        embeddings.tensors_saved(trace, {**tensor_shapes.lora(), DELTA: [len(ROWS), 64]}),
    )
