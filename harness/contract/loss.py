"""LOSS: what is minimised, and by how much it is divided."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "LOSS",
    "the loss",
    (
        Clause(
            "LOSS-01",
            "The training loss of a micro-batch MUST be the cross entropy summed over the labels that its logits "
            "predict, divided by the number of such labels in the whole accumulation window, so that loss and gradient "
            "of an optimizer step are the window's mean over tokens. A causal model predicts labels[..., 1:] that are "
            "not -100; behind virtual tokens it predicts the first label too. A classifier predicts its rows' labels, a "
            "decoder that is fed the labels all of them.",
            source="transformers/trainer.py:2298-2359 (Trainer._get_num_items_in_batch), "
            "transformers/loss/loss_utils.py:34-73 (ForCausalLMLoss)",
        ),
        Clause(
            "LOSS-02",
            "Where a collator provides `shift_labels`, these MUST be the targets, and MUST be counted as they are for "
            "num_items_in_batch, without a further shift.",
            source="transformers/trainer.py:2325-2335 (Trainer._get_num_items_in_batch)",
            needs=("transformers>=4.50",),
        ),
        Clause(
            "LOSS-03",
            "A loss that num_items_in_batch normalised MUST NOT be divided again by gradient_accumulation_steps; a "
            "per-batch mean from a subclass that sets loss_is_scaled_for_ga = False MUST be divided once, by the "
            "number of micro-batches of the current window.",
            source="transformers/trainer.py:2099-2111 (Trainer.training_step)",
        ),
        Clause(
            "LOSS-04",
            "With label_smoothing_factor e the loss MUST be (1 - e) * NLL + e * mean over the vocabulary of -log p, "
            "the mean over the predicted labels that are not -100, through either injection route.",
            source="transformers/trainer_pt_utils.py:435-481 (LabelSmoother.__call__)",
        ),
        Clause(
            "LOSS-05",
            "With label smoothing the model MUST run without labels, and the labels MUST be shifted for a causal model "
            "(by the class below the adapter) and for no other.",
            source="transformers/trainer.py:2153-2189 (Trainer.compute_loss)",
        ),
        Clause(
            "LOSS-06",
            "Label smoothing MUST work with prompt learning, as the smoothed loss over the labels that are predicted.",
            source="transformers/trainer.py:2180-2189 (Trainer.compute_loss)",
        ),
        Clause(
            "LOSS-07",
            "For problem_type multi_label_classification the Trainer MUST warn that label smoothing does not fit, and "
            "MUST train with the model's own loss.",
            source="transformers/trainer.py:547-558 (Trainer.__init__)",
            needs=("transformers>=4.56",),
        ),
        Clause(
            "LOSS-08",
            "compute_loss_func MUST be given the labels, which the model is not, and the window's num_items_in_batch, "
            "and its result MUST NOT be divided by gradient_accumulation_steps.",
            source="transformers/trainer.py:2153-2177 (Trainer.compute_loss)",
            needs=("transformers>=4.46",),
        ),
        Clause(
            "LOSS-10",
            "A step whose loss is NaN or infinite MUST show in the log and in TrainOutput.training_loss: no finite "
            "number may stand in for it.",
            source="transformers/trainer.py:1911-1924 (Trainer._run_epoch, logging_nan_inf_filter)",
        ),
    ),
)
