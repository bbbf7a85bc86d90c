"""Other tools on labelled texts, each as in its own documentation. Run by `featcache.bench.peers.learning`.

    python learning_script.py job.json answer.json

It imports nothing of featcache, so that it runs in an environment where the peers are installed. The seconds
begin after the imports.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from typing import Any

SETFIT_BATCH = 16  # its default
TUTORIAL_BATCH = 50  # of the ChnSentiCorp tutorials
PENALTIES = (0.1, 1.0, 10.0, 100.0)  # of logistic regression, chosen on validation


def tutorial(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The loop of the tutorials: the frozen model runs again in each epoch, in float32; one epoch."""
    torch, transformers = import_module("torch"), import_module("transformers")

    def run() -> dict[str, Any]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
        body = transformers.AutoModel.from_pretrained(job["model"], dtype=torch.float32).eval()
        head = torch.nn.Linear(body.config.hidden_size, job["classes"])
        optimizer = torch.optim.AdamW(head.parameters(), lr=5e-4)
        labels = torch.tensor(job["splits"]["train"]["labels"])

        def logits(batch: list[str]) -> Any:
            inputs = tokenizer(
                batch, padding="max_length", truncation=True, max_length=job["longest"], return_tensors="pt"
            )
            with torch.no_grad():
                states = body(**inputs).last_hidden_state
            return head(states[:, 0])

        texts, began = _texts(job, "train"), time.perf_counter()
        for rows in torch.randperm(len(texts)).split(TUTORIAL_BATCH):
            optimizer.zero_grad()
            found = logits([texts[row] for row in rows.tolist()])
            torch.nn.functional.cross_entropy(found, labels[rows]).backward()
            optimizer.step()
        answer: dict[str, Any] = {"learning_seconds": time.perf_counter() - began}
        for split in ("validation", "test"):
            texts = _texts(job, split)
            parts = [texts[at : at + TUTORIAL_BATCH] for at in range(0, len(texts), TUTORIAL_BATCH)]
            with torch.no_grad():
                answer[split] = torch.cat([logits(part) for part in parts]).softmax(1).tolist()
        return answer

    return run


def sentence_transformers(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """`encode` with the defaults, and scikit-learn's logistic regression."""
    models = import_module("sentence_transformers")

    def run() -> dict[str, Any]:
        model = models.SentenceTransformer(job["model"], device="cpu")
        model.max_seq_length = job["longest"]
        return _logistic(job, lambda texts: model.encode([job["prompt"] + text for text in texts]))

    return run


def model2vec(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Static embeddings distilled from the same encoder, and scikit-learn's logistic regression."""
    distill = import_module("model2vec.distill").distill

    def run() -> dict[str, Any]:
        model = distill(model_name=job["model"])
        return _logistic(job, model.encode)

    return run


def setfit(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A contrastively trained encoder with its default settings."""
    package, datasets = import_module("setfit"), import_module("datasets")

    def run() -> dict[str, Any]:
        model = package.SetFitModel.from_pretrained(job["model"], device="cpu")
        model.model_body.max_seq_length = job["longest"]
        labels = job["splits"]["train"]["labels"]
        train = datasets.Dataset.from_dict({"text": _texts(job, "train"), "label": labels})
        arguments = package.TrainingArguments(
            seed=job["seed"], max_steps=job["steps"], report_to="none", save_strategy="no"
        )
        trainer = package.Trainer(model=model, args=arguments, train_dataset=train)
        began = time.perf_counter()
        trainer.train()
        answer: dict[str, Any] = {"learning_seconds": time.perf_counter() - began}
        answer["all_steps"] = _steps_of_setfit(labels)
        answer["steps"] = job["steps"] if job["steps"] > 0 else answer["all_steps"]
        for split in ("validation", "test"):
            found = model.predict_proba(_texts(job, split), as_numpy=True)
            answer[split] = _of_all_classes(found, model.model_head.classes_, job["classes"])
        return answer

    return run


def autointent(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Heads on embeddings of the same encoder: the preset `classic-light`, which tries 20."""
    package, configs = import_module("autointent"), import_module("autointent.configs")

    def run() -> dict[str, Any]:
        pipeline = package.Pipeline.from_preset("classic-light", seed=job["seed"] + 1)  # above 0
        embedder = configs.SentenceTransformerEmbeddingConfig(
            model_name=job["model"],
            default_prompt=job["prompt"] or None,
            tokenizer_config={"max_length": job["longest"]},
            device="cpu",
        )
        pipeline.set_config(embedder)
        rows = {
            split: [
                {"utterance": text, "label": label}
                for text, label in zip(part["texts"], part["labels"], strict=True)
            ]
            for split, part in job["splits"].items()
            if split != "test"
        }
        pipeline.fit(package.Dataset.from_dict(rows))
        answer: dict[str, Any] = {}
        for split in ("validation", "test"):
            found = pipeline.predict_with_metadata(job["splits"][split]["texts"])
            answer[split] = [row.score for row in found.utterances]
        return answer

    return run


PEERS = {
    "tutorial": tutorial,
    "sentence-transformers": sentence_transformers,
    "model2vec": model2vec,
    "setfit": setfit,
    "autointent": autointent,
}


def _logistic(job: dict[str, Any], encode: Callable[[list[str]], Any]) -> dict[str, Any]:
    """Probabilities of the penalty with the highest validation accuracy."""
    linear = import_module("sklearn.linear_model")
    x = {split: encode(part["texts"]) for split, part in job["splits"].items()}
    labels = {split: part["labels"] for split, part in job["splits"].items()}
    best: tuple[float, Any] | None = None
    for penalty in PENALTIES:
        head = linear.LogisticRegression(C=penalty, max_iter=1000).fit(x["train"], labels["train"])
        found = head.score(x["validation"], labels["validation"])
        if best is None or found > best[0]:
            best = found, head
    assert best is not None
    head = best[1]
    return {
        split: _of_all_classes(head.predict_proba(x[split]), head.classes_, job["classes"])
        for split in ("validation", "test")
    }


def _steps_of_setfit(labels: Sequence[int]) -> int:
    """Its own number of steps: as many pairs of equal labels as of different ones, in batches of 16."""
    counts = [labels.count(label) for label in set(labels)]
    equal = sum(count * (count + 1) // 2 for count in counts)
    different = (sum(counts) ** 2 - sum(count**2 for count in counts)) // 2
    return -(-2 * max(equal, different) // SETFIT_BATCH)


def _peak_bytes() -> int | None:
    """Most bytes that this process had resident; None where the system does not say it."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


def _texts(job: dict[str, Any], split: str) -> list[str]:
    return [job["prompt"] + text for text in job["splits"][split]["texts"]]


def _of_all_classes(found: Any, known: Sequence[int], classes: int) -> list[list[float]]:
    """Probabilities `[N, C]` from those of the classes that train has."""
    places = {int(label): column for column, label in enumerate(known)}
    return [
        [float(row[places[label]]) if label in places else 0.0 for label in range(classes)] for row in found
    ]


def main(job_path: str, answer_path: str) -> None:
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    run = PEERS[job["peer"]](job)
    began = time.perf_counter()
    answer = run()
    answer["seconds"] = time.perf_counter() - began
    answer["peak_bytes"] = _peak_bytes()
    own = () if job["peer"] == "tutorial" else (job["peer"],)
    names = (*own, "torch", "transformers", "scikit-learn")
    answer["versions"] = {name: metadata.version(name) for name in names}
    with open(answer_path, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
