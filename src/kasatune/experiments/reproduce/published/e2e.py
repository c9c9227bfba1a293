"""E2E: the paper's Table 3, GPT-2 medium and large; KaSA's own numbers in it were not found."""

from __future__ import annotations

from kasatune.experiments.reproduce.published.schema import Experiment, Figure, PaperModel

_METRICS = ("bleu", "nist", "meteor", "rouge_l", "cider")
_KASA = "Table 3; KaSA's numbers were not found"
_LORA = "the LoRA paper's Table 3 (arXiv 2106.09685), the source of the paper's row"
_RECIPE = "the recipe adapts all of c_attn by KaSA's recipe, not LoRA's queries and values with smoothed labels"
_METEOR = "not computed: no score of kasatune is comparable with METEOR 1.5, which needs its Java program"


def _model(name: str, title: str, lora: tuple[float, float, float, float, float]) -> PaperModel:
    kasa = [Figure("e2e", metric, "kasa", None, _KASA) for metric in _METRICS]
    others = [
        Figure(
            "e2e",
            metric,
            "lora",
            value,
            _LORA,
            decimals=2 if metric in ("nist", "cider") else 1,
            caveats=(_RECIPE, _METEOR) if metric == "meteor" else (_RECIPE,),
        )
        for metric, value in zip(_METRICS, lora, strict=True)
    ]
    return PaperModel(name, title, {"e2e": f"e2e/{name}"}, (*kasa, *others))


E2E = Experiment(
    name="e2e",
    title="E2E, the test set",
    models=(
        _model("gpt2-medium", "GPT-2 medium", (70.4, 8.85, 46.8, 71.8, 2.53)),
        _model("gpt2-large", "GPT-2 large", (70.4, 8.89, 46.8, 72.0, 2.47)),
    ),
    methods=("kasa", "lora"),
    scored={"e2e": ("e2e", "test")},
    settings="recipe",
    quick={
        "task.max_train": "2000",
        "task.max_eval": "100",
        "task.max_length": "288",
        "method.r": "8",
        "method.alpha": "16",
        "method.dropout": "0",
        "training.epochs": "1",
        "training.batch_size": "16",
        "training.learning_rate": "3.0e-3",
        "training.weight_decay": "0",
        "generation.num_beams": "4",
        "generation.max_new_tokens": "110",
        "generation.no_repeat_ngram_size": "0",
    },
    published="means of three runs, best of all methods in 4 of 5 scores (medium) and in all 5 (large)",
    unknown=(
        "KaSA's five numbers for either model",
        "its layers, rank, beta, gamma, learning rate, batch, epochs and decoding; the recipes have LoRA's",
        "no log was published",
    ),
)
